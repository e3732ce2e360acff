"""Building blocks shared by the encoder, the language model and the decoder.

Every parameter is made here or with `named`, so that each of its axes carries
a logical name from `axes.py`. Arithmetic runs in `dtype`; parameters are held
in float32; norms compute in float32. The gradient of a weight leaves its matrix
product in the weight's own dtype: what devices add up is float32, although
what they multiplied is bfloat16.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from rcmed_jax import axes

Initializer = jax.nn.initializers.Initializer

# Normal(0, 0.02): what both SAM and LLaMA start their weights from.
NORMAL = nnx.initializers.normal(0.02)
# Uniform(+-1 / sqrt(inputs)), what SAM's own layers start from: unlike a fixed
# deviation it keeps a toy's narrow layers alive.
FAN_IN = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# Outputs as large as inputs: signals keep their size through the language model
# and the projections between language and pixels.
UNIT = nnx.initializers.variance_scaling(1.0, "fan_in", "normal")
ZEROS = nnx.initializers.zeros_init()
ONES = nnx.initializers.ones_init()


# What `remat` may keep of a layer for its backward pass, least first. All make
# the rest again; the numbers are what a layer of LLaMA keeps a token, D wide.
_ATTENTION, _PRODUCT = "attention", "product"
_POLICIES = jax.checkpoint_policies
REMAT: dict[str | bool, Callable[..., Any]] = {
  # its input alone: D
  "full": _POLICIES.nothing_saveable,
  # and what its attention gives (`attended`): 2 D. It saves making attention
  # again where that is a kernel which names what its own backward pass needs.
  "attention": _POLICIES.save_only_these_names(_ATTENTION),
  # and what its products with weights give: q, k, v, o, gate, up, about 11 D.
  # Norms, activations and scores are made again.
  "dots": _POLICIES.save_only_these_names(_ATTENTION, _PRODUCT),
}


def remat(run: Callable[..., Any], policy: str | bool) -> Callable[..., Any]:
  """`run`, which is scanned over layers, keeping what `policy` says.

  Args:
    run: one turn of a scan.
    policy: a name of `REMAT`, or "none" to keep everything.
  """
  if policy == "none":
    return run
  # A scan shares nothing between its turns, so nothing need be held apart.
  return jax.checkpoint(run, policy=REMAT[policy], prevent_cse=False)


def attended(values: jax.Array) -> jax.Array:
  """What an attention gives, under the name by which `REMAT` keeps it."""
  return checkpoint_name(values, _ATTENTION)


def named(init: Initializer, names: tuple[str, ...]) -> Initializer:
  """The same initializer, its result carrying logical axis names."""
  return nnx.with_partitioning(init, names)


def product(
  values: jax.Array, kernel: jax.Array, dtype: Any, result: Any = None
) -> jax.Array:
  """values [..., I] times kernel [I, ...], computed in `dtype`.

  The result is in `dtype`, too, unless told otherwise; the gradient of the
  kernel is in the kernel's dtype.
  """
  out = _product(values, kernel, dtype, result or dtype)
  return checkpoint_name(out, _PRODUCT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _product(
  values: jax.Array, kernel: jax.Array, dtype: Any, result: Any
) -> jax.Array:
  return jnp.tensordot(
    values.astype(dtype), kernel.astype(dtype), 1, preferred_element_type=result
  )


def _product_forward(
  values: jax.Array, kernel: jax.Array, dtype: Any, result: Any
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
  return _product(values, kernel, dtype, result), (values, kernel)


def _product_backward(
  dtype: Any, _: Any, inputs: tuple[jax.Array, jax.Array], change: jax.Array
) -> tuple[jax.Array, jax.Array]:
  values, kernel = inputs
  change = change.astype(dtype)
  outputs = tuple(range(1, kernel.ndim))
  last = tuple(range(change.ndim - len(outputs), change.ndim))
  rows = tuple(range(values.ndim - 1))
  d_values = jnp.tensordot(
    change,
    kernel.astype(dtype),
    (last, outputs),
    preferred_element_type=values.dtype,
  )
  d_kernel = jnp.tensordot(
    values.astype(dtype),
    change,
    (rows, rows),
    preferred_element_type=kernel.dtype,
  )
  return d_values, d_kernel


_product.defvjp(_product_forward, _product_backward)


class Linear(nnx.Linear):
  """A dense layer by `product`; its bias is added in float32."""

  def __call__(self, inputs: jax.Array, out_sharding: None = None) -> jax.Array:
    return _affine(self, inputs)


class LinearGeneral(nnx.LinearGeneral):
  """The same from the last axis to several."""

  def __call__(self, inputs: jax.Array, out_sharding: None = None) -> jax.Array:
    return _affine(self, inputs)


def _affine(
  layer: nnx.Linear | nnx.LinearGeneral, inputs: jax.Array
) -> jax.Array:
  bias = None if layer.bias is None else layer.bias[...]
  return affine(inputs, layer.kernel[...], bias, layer.dtype)


def affine(
  values: jax.Array, kernel: jax.Array, bias: jax.Array | None, dtype: Any
) -> jax.Array:
  """The `product` and a bias of the kernel's output axes, computed in `dtype`.

  Gradients of both are in their own dtypes.
  """
  result = product(values, kernel, dtype)
  if bias is None:
    return result
  lead = (1,) * (result.ndim - bias.ndim)
  bias = bias.astype(jnp.float32).reshape(*lead, *bias.shape)
  return (result.astype(jnp.float32) + bias).astype(dtype)


def linear(
  inputs: int,
  outputs: int,
  names: tuple[str, str],
  *,
  rngs: nnx.Rngs,
  bias: bool = True,
  init: Initializer = NORMAL,
  dtype: jnp.dtype = jnp.float32,
) -> Linear:
  """A dense layer whose kernel [inputs, outputs] has the axes `names`."""
  return Linear(
    inputs,
    outputs,
    use_bias=bias,
    dtype=dtype,
    kernel_init=named(init, names),
    bias_init=named(ZEROS, (axes.VECTOR,)),
    rngs=rngs,
  )


def layer_norm(width: int, *, eps: float, rngs: nnx.Rngs) -> nnx.LayerNorm:
  """LayerNorm over the last axis, float32 inside."""
  return nnx.LayerNorm(
    width,
    epsilon=eps,
    dtype=jnp.float32,
    use_fast_variance=False,  # E[x^2] - E[x]^2 loses digits
    scale_init=named(ONES, (axes.VECTOR,)),
    bias_init=named(ZEROS, (axes.VECTOR,)),
    rngs=rngs,
  )


def rms_norm(width: int, *, eps: float, rngs: nnx.Rngs) -> nnx.RMSNorm:
  """RMSNorm over the last axis, float32 inside."""
  return nnx.RMSNorm(
    width,
    epsilon=eps,
    dtype=jnp.float32,
    scale_init=named(ONES, (axes.VECTOR,)),
    rngs=rngs,
  )


def dropout(values: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
  """Zeroes a share `rate` of the values and rescales; no key, no dropout."""
  if key is None or rate == 0.0:
    return values
  keep = jax.random.bernoulli(key, 1.0 - rate, values.shape)
  return jnp.where(keep, values / (1.0 - rate), 0).astype(values.dtype)


def stack(
  make: Callable[[nnx.Rngs], nnx.Module],
  count: int,
  name: str,
  *,
  rngs: nnx.Rngs,
) -> nnx.Module:
  """`count` layers as one module, every parameter with a leading axis `name`.

  Run it with `jax.lax.scan` over the module itself.
  """
  make_all = nnx.vmap(
    make,
    in_axes=0,
    out_axes=0,
    transform_metadata={nnx.PARTITION_NAME: name},
  )
  return make_all(rngs.split(count))


def resize_bilinear(values_BYXC: jax.Array, size: tuple[int, int]) -> jax.Array:
  """float32 [B, *size, C]: bilinear, half-pixel centres, no antialiasing.

  Source: torch `interpolate(mode="bilinear", align_corners=False)`, which the
  release uses for visual tokens, feedback and masks.
  """
  batch, _, _, channels = values_BYXC.shape
  return jax.image.resize(
    values_BYXC.astype(jnp.float32),
    (batch, *size, channels),
    method="bilinear",
    antialias=False,
  )
