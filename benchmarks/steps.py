"""What each link adds to a training step, on a convolutional net and on a 4.2M MLP.

python -m benchmarks.steps > benchmarks/results/steps-<machine>.md
"""

import functools
import importlib.util
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax

import jaxprune as jp
from benchmarks import timing
from experiments.usage import Parser, exit_with_one_line

BATCH = 64


def conv_net(key):
    """Weights and loss of a small convolutional net on 32x32x3 images, without biases."""
    shapes = [(3, 3, 3, 64), (3, 3, 64, 64), (3, 3, 64, 128), (3, 3, 128, 128), (8192, 10)]

    def logits(weights, images):
        for i, kernel in enumerate(weights[:-1]):
            stride = (1 + i % 2,) * 2
            images = jax.nn.relu(
                jax.lax.conv_general_dilated(
                    images, kernel, stride, "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
            )
        return images.reshape(len(images), -1) @ weights[-1]

    return _kaiming(key, shapes), logits, (32, 32, 3)


def mlp(key, width: int = 1536):
    """Weights and loss of an MLP on 784 inputs, of 4.2 million weights at this width."""
    shapes = [(784, width), (width, width), (width, width // 4), (width // 4, 10)]

    def logits(weights, inputs):
        for matrix in weights[:-1]:
            inputs = jax.nn.relu(inputs @ matrix)
        return inputs @ weights[-1]

    return _kaiming(key, shapes), logits, (784,)


def _kaiming(key, shapes):
    make = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    return [make(jax.random.fold_in(key, i), shape) for i, shape in enumerate(shapes)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints one table for each net."""
    Parser(__doc__).parse_args(arguments)  # for --help: there are no flags
    print(timing.machine())
    if importlib.util.find_spec("jaxpruner") is None:
        print("jaxpruner isn't installed: its row is missing.\n")
    for build in (conv_net, mlp):
        weights, task = on_batch(build)
        timed = timing.compare(cases(weights, task), repeats=31, carried=2)
        size = sum(leaf.size for leaf in weights)
        title = f"{build.__name__}, {size:,} weights, batch {BATCH}"
        print(timing.table(title, timed, "dense step", "two dense steps"))


def cases(weights, task) -> dict[str, tuple[Callable, tuple]]:
    """Steps between two choices of a mask, as (function, arguments)."""
    size = sum(leaf.size for leaf in weights)
    mask = jp.top_k_mask(jax.tree.map(jnp.abs, weights), size // 10)
    top_k = jp.keep_sparse(0.9, every=100)
    nm = jp.keep_sparse("2:4", every=40, where=divides)
    transposable = jp.keep_sparse(jp.NM(2, 4, transposable=True), every=40, where=divides)
    after = lambda link: step(optax.chain(optax.adam(1e-3), link), task, weights)
    before = lambda link: step(optax.chain(link, optax.adam(1e-3)), task, weights)
    behind = lambda link: step(jp.straight_through(optax.adam(1e-3), link), task, weights)
    found = {
        "dense step": step(optax.adam(1e-3), task, weights),
        "two dense steps": two_steps(optax.adam(1e-3), task, weights),
        "keep_mask": after(jp.keep_mask(mask)),
        "keep_sparse every 100": after(top_k),
        "keep_sparse 2:4 every 40": after(nm),
        "keep_sparse transposable 2:4 every 40": after(transposable),
        "straight_through, keep_mask": behind(jp.keep_mask(mask)),
        "straight_through, keep_sparse every 100": behind(top_k),
        "straight_through, keep_sparse 2:4 every 40": behind(nm),
        "straight_through, keep_sparse 2:4": behind(jp.keep_sparse("2:4", where=divides)),
        "regrow every 100": step(jp.regrow(optax.adam(1e-3), mask), task, weights),
        "add_hoyer_square": before(jp.add_hoyer_square(1e-4)),
        "add_group_hoyer_square": before(jp.add_group_hoyer_square(1e-3)),
        "add_penalty(l1)": before(jp.add_penalty(jp.l1, 1e-5)),
        "ProbMask, jax.random.bits": probmask_step(task, weights, jax.random.bits),
        "ProbMask, counter_bits": probmask_step(task, weights, jp.counter_bits),
        "frozen, Gumbel, jax.random.bits": gumbel_step(task, weights, jax.random.bits),
        "frozen, Gumbel, counter_bits": gumbel_step(task, weights, jp.counter_bits),
        "frozen, learned 2:4": pattern_step(task, weights, transposable=False),
        "frozen, learned transposable 2:4": pattern_step(task, weights, transposable=True),
    }
    if importlib.util.find_spec("jaxpruner"):
        found["jaxpruner, global magnitude every 100"] = jaxpruner_step(task, weights)
    return found


def jaxpruner_step(task, weights):
    """A step of the predecessor's global pruning, with the calls that its README asks for."""
    # A function that it wants has moved since.
    jax.tree_map = jax.tree_util.tree_map  # type: ignore[attr-defined]
    jaxpruner = importlib.import_module("jaxpruner")
    updater = jaxpruner.GlobalMagnitudePruning(
        sparsity=0.9, scheduler=jaxpruner.PeriodicSchedule(100, 0, 1_000_000)
    )
    optimizer = updater.wrap_optax(optax.adam(1e-3))
    weights = {str(i): leaf for i, leaf in enumerate(weights)}  # it takes dicts alone
    of_dict = lambda params: task(list(params.values()))

    def train(params, opt_state):
        params = updater.pre_forward_update(params, opt_state)
        loss, grads = jax.value_and_grad(of_dict)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return updater.post_gradient_update(params, opt_state), opt_state, loss

    return train, after_steps(train, weights, optimizer.init(weights))


def on_batch(build, batch: int = BATCH):
    """A net's weights, and its loss on one batch of noise."""
    weights, logits, shape = build(jax.random.key(0))
    with jax.ensure_compile_time_eval():  # for those who have only shapes of the weights
        images = jax.random.normal(jax.random.key(1), (batch, *shape))
        labels = jnp.arange(batch) % 10

    def task(weights):
        losses = optax.softmax_cross_entropy_with_integer_labels(logits(weights, images), labels)
        return losses.mean()

    return weights, task


def after_steps(train, params, opt_state):
    """Parameters and state after the first steps, where masks are chosen and looked at."""
    train = jax.jit(train)
    for _ in range(2):
        params, opt_state, _ = train(params, opt_state)
    return params, opt_state


def step(optimizer, task, params):
    """One training step, between two choices of a mask, as (function, arguments)."""

    def train(params, opt_state):
        loss, grads = jax.value_and_grad(task)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return train, after_steps(train, params, optimizer.init(params))


def two_steps(optimizer, task, params):
    """Two dense training steps as (function, arguments)."""
    one, arguments = step(optimizer, task, params)

    def train(params, opt_state):
        params, opt_state, _ = one(params, opt_state)
        return one(params, opt_state)

    return train, arguments


def probmask_step(task, weights, random_bits):
    """A ProbMask step with two draws, as (function, arguments)."""
    params = {"weights": weights, "probs": jp.init_probabilities(weights, value=0.1)}
    optimizer = optax.chain(
        optax.clip_by_global_norm(3.0),
        optax.partition(
            {
                "weights": optax.adam(1e-3),
                "probs": optax.chain(optax.adam(6e-3), jp.project_probabilities(0.9)),
            },
            {"weights": "weights", "probs": "probs"},
        ),
    )

    def train(params, opt_state, key, temperature):
        def loss(params):
            losses = [
                task(
                    jp.apply_mask(
                        params["weights"],
                        jp.relaxed_bernoulli(
                            draw, params["probs"], temperature, random_bits=random_bits
                        ),
                    )
                )
                for draw in jax.random.split(key)
            ]
            return sum(losses) / 2

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    return train, (params, optimizer.init(params), jax.random.key(2), jnp.float32(0.5))


def gumbel_step(task, weights, random_bits):
    """A step of extraction with one draw and smart rescaling, as (function, arguments)."""
    sgd = functools.partial(optax.sgd, momentum=0.9)
    optimizer = optax.partition(
        {"logits": sgd(50.0), "scales": sgd(1e-3)}, {"logits": "logits", "scales": "scales"}
    )

    def train(params, opt_state, key, weights):
        def loss(params):
            mask = jp.gumbel_mask(key, params["logits"], random_bits=random_bits)
            return task(jp.rescale(jp.apply_mask(weights, mask), params["scales"]))

        value, grads = jax.value_and_grad(loss)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    params = {
        "logits": jax.tree.map(jnp.zeros_like, weights),
        "scales": jax.tree.map(lambda _: jnp.float32(1), weights),
    }
    return train, (params, optimizer.init(params), jax.random.key(2), weights)


def divides(path, leaf):
    """Whether inputs and outputs divide by 4."""
    return leaf.ndim >= 2 and leaf.shape[-2] % 4 == 0 and leaf.shape[-1] % 4 == 0


def pattern_step(task, weights, transposable):
    """A step of learning 2:4 patterns with one draw, as (function, arguments)."""
    optimizer = optax.adam(1e-2)

    def train(logits, opt_state, key, weights):
        def loss(logits):
            mask = jp.gumbel_pattern_mask(
                key,
                weights,
                logits,
                2,
                4,
                transposable=transposable,
                random_bits=jp.counter_bits,
            )
            return task(jp.apply_mask(weights, mask))

        value, grads = jax.value_and_grad(loss)(logits)
        updates, opt_state = optimizer.update(grads, opt_state, logits)
        return optax.apply_updates(logits, updates), opt_state, value

    logits = jp.init_pattern_logits(weights, 2, 4, transposable=transposable, where=divides)
    return train, (logits, optimizer.init(logits), jax.random.key(2), weights)


if __name__ == "__main__":
    exit_with_one_line(main)
