"""jaxprune: sparse training in JAX by optax links and functions on trees.

Which weights can be pruned?    prunable, inner_layers
How sparse is it?               sparsity, count, layers, table, problems, leaf_flops
Which mask is in force?         current_mask, overlaps, pack_mask, unpack_mask
Zero what a mask prunes         apply_mask, keep_mask
Keep pruned weights alive       straight_through
Prune at once, or in training   prune_to, keep_sparse, NM, Blocks, Above, grasp_scores
Choose what stays               top_k_mask, nm_mask, transposable_nm_mask,
                                transposable_potentials, mask_count, smallest_n
Prune what is trained, by data  prune_layers, reconstruct
Learn what stays (ProbMask)     init_probabilities, relaxed_bernoulli, project_probabilities,
                                best_sampled_mask, vrpge_gradient
Find it in random weights       gumbel_mask, surrogate_gradient, signed_constant, rescale,
                                inverse_density, project_logits
Train sparse from the start     regrow, random_mask, erk_sparsities
Train thresholds, too           init_thresholds, above_thresholds, reset_thresholds
Learn an N:M pattern            init_pattern_logits, gumbel_pattern_mask, pattern_mask
Press towards sparsity          add_hoyer_square, add_group_hoyer_square, add_penalty
(DeepHoyer), then threshold     hoyer_square, group_hoyer_square, hoyer_ratio, l1, transformed_l1,
                                group_lasso, threshold_mask, trimming_point, group_norms
Constrain and sample            projection_capped_simplex, bernoulli_mask, counter_bits
Change it over time             cubic_sparsity, alternating_sparsity, ramped_threshold,
                                annealed_temperature
Make the network smaller        channel_groups, channel_norms, channel_mask, shrink,
                                shrink_module
Prune channels by data, gates   channel_sensitivities, prune_channels, init_gates, apply_gates
Count channels that just die    count_dying
Stay within FLOPs or time       channel_cost, channel_times, budget_mask
Prune and quantize together     compress_to, quantize_to, add_admm, keep_quantized,
under one budget in bytes       knapsack_mask, multiple_choice, pack_quantized, unpack_quantized
Hand over to hardware           pack_24, unpack_24
"""

from jaxprune.methods.compression import add_admm, compress_to, keep_quantized
from jaxprune.methods.dying import count_dying
from jaxprune.methods.gumbel import inverse_density, project_logits, rescale, signed_constant
from jaxprune.methods.hoyer import (
    add_group_hoyer_square,
    add_hoyer_square,
    add_penalty,
    threshold_mask,
)
from jaxprune.methods.learned_patterns import gumbel_pattern_mask, init_pattern_logits, pattern_mask
from jaxprune.methods.penalties import (
    group_hoyer_square,
    group_lasso,
    hoyer_ratio,
    hoyer_square,
    l1,
    transformed_l1,
    trimming_point,
)
from jaxprune.methods.probmask import (
    best_sampled_mask,
    init_probabilities,
    project_probabilities,
    vrpge_gradient,
)
from jaxprune.methods.pruning import keep_mask, keep_sparse, prune_to
from jaxprune.methods.regrowing import regrow
from jaxprune.methods.schedules import (
    alternating_sparsity,
    annealed_temperature,
    cubic_sparsity,
    ramped_threshold,
)
from jaxprune.methods.scores import grasp_scores
from jaxprune.methods.straight_through import straight_through
from jaxprune.methods.trainable_thresholds import (
    above_thresholds,
    init_thresholds,
    reset_thresholds,
)
from jaxprune.networks.channels import ChannelGroups, Channels, channel_groups
from jaxprune.networks.flops import inner_layers, leaf_flops
from jaxprune.networks.gates import apply_gates, init_gates
from jaxprune.networks.group_trees import channel_cost, channel_mask, channel_norms
from jaxprune.networks.modules import shrink_module
from jaxprune.networks.oneshot import prune_layers
from jaxprune.networks.reconstruction import reconstruct
from jaxprune.networks.removal import Shrunk, shrink
from jaxprune.networks.sensitivities import channel_sensitivities, prune_channels
from jaxprune.networks.timing import channel_times
from jaxprune.patterns.counting import mask_count, smallest_n
from jaxprune.patterns.groups import group_norms
from jaxprune.patterns.nm import nm_mask
from jaxprune.patterns.packing import Packed24, pack_24, unpack_24
from jaxprune.patterns.targets import NM, Above, Blocks
from jaxprune.patterns.transposable import transposable_nm_mask, transposable_potentials
from jaxprune.trees.bits import pack_mask, unpack_mask
from jaxprune.trees.budgets import budget_mask
from jaxprune.trees.densities import erk_sparsities, random_mask
from jaxprune.trees.in_force import current_mask
from jaxprune.trees.integers import pack_quantized, unpack_quantized
from jaxprune.trees.knapsack import knapsack_mask
from jaxprune.trees.masks import apply_mask, count, prunable, sparsity
from jaxprune.trees.multiple_choice import Choice, multiple_choice
from jaxprune.trees.overlap import Overlap, overlaps
from jaxprune.trees.projections import projection_capped_simplex
from jaxprune.trees.quantizing import Grid, quantize_to
from jaxprune.trees.report import Layer, layers, problems
from jaxprune.trees.sampling import (
    bernoulli_mask,
    counter_bits,
    gumbel_mask,
    relaxed_bernoulli,
    surrogate_gradient,
)
from jaxprune.trees.selection import top_k_mask
from jaxprune.trees.tables import table

__all__ = [
    "NM",
    "Above",
    "Blocks",
    "ChannelGroups",
    "Channels",
    "Choice",
    "Grid",
    "Layer",
    "Overlap",
    "Packed24",
    "Shrunk",
    "above_thresholds",
    "add_admm",
    "add_group_hoyer_square",
    "add_hoyer_square",
    "add_penalty",
    "alternating_sparsity",
    "annealed_temperature",
    "apply_gates",
    "apply_mask",
    "bernoulli_mask",
    "best_sampled_mask",
    "budget_mask",
    "channel_cost",
    "channel_groups",
    "channel_mask",
    "channel_norms",
    "channel_sensitivities",
    "channel_times",
    "compress_to",
    "count",
    "count_dying",
    "counter_bits",
    "cubic_sparsity",
    "current_mask",
    "erk_sparsities",
    "grasp_scores",
    "group_hoyer_square",
    "group_lasso",
    "group_norms",
    "gumbel_mask",
    "gumbel_pattern_mask",
    "hoyer_ratio",
    "hoyer_square",
    "init_gates",
    "init_pattern_logits",
    "init_probabilities",
    "init_thresholds",
    "inner_layers",
    "inverse_density",
    "keep_mask",
    "keep_quantized",
    "keep_sparse",
    "knapsack_mask",
    "l1",
    "layers",
    "leaf_flops",
    "mask_count",
    "multiple_choice",
    "nm_mask",
    "overlaps",
    "pack_24",
    "pack_mask",
    "pack_quantized",
    "pattern_mask",
    "problems",
    "project_logits",
    "project_probabilities",
    "projection_capped_simplex",
    "prunable",
    "prune_channels",
    "prune_layers",
    "prune_to",
    "quantize_to",
    "ramped_threshold",
    "random_mask",
    "reconstruct",
    "regrow",
    "relaxed_bernoulli",
    "rescale",
    "reset_thresholds",
    "shrink",
    "shrink_module",
    "signed_constant",
    "smallest_n",
    "sparsity",
    "straight_through",
    "surrogate_gradient",
    "table",
    "threshold_mask",
    "top_k_mask",
    "transformed_l1",
    "transposable_nm_mask",
    "transposable_potentials",
    "trimming_point",
    "unpack_24",
    "unpack_mask",
    "unpack_quantized",
    "vrpge_gradient",
]
