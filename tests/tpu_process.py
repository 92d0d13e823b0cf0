"""Scripts that compile for TPUs, in processes of their own: the plug-in and CPU devices of the
other tests never meet, and memory ends with the process."""

import os
import subprocess
import sys
from pathlib import Path


def run(script: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a Python file of the tests."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(Path(__file__).parent.parent),
        # There is no TPU host to ask about, and no TPU that two processes could want.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    }
    # Without the folder of the script, whose `experiments` are tests.
    command = [sys.executable, "-P", script, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
