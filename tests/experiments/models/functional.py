"""What tests ask of models in functional style."""

import jax
import jax.numpy as jnp
from flax import nnx


def parameters_by_path(model):
    """The parameters of a model, each under a name such as `fc1/kernel`."""
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def gradient_and_rest(graphdef, params, rest, images):
    """What one training step needs of a functional model: gradient and new running statistics."""

    def loss_and_rest(params):
        model = nnx.merge(graphdef, params, rest, copy=True)
        loss = jnp.mean(model(images, train=True) ** 2)
        return loss, nnx.state(model, nnx.Not(nnx.Param))

    return jax.grad(loss_and_rest, has_aux=True)(params)
