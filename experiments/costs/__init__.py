"""What programs cost before and after they are compiled: operations, memory, bytes that move."""
