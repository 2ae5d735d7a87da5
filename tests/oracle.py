"""The library by its definition: NumPy, one pair after another, one offset of the window after another.

Slow, short, and without a line in common with the package. Wang et al. 2004, equations 6 and 13; Wang, Simoncelli
and Bovik 2003, equation 7; Zhao et al. 2017, section III-D; masks by normalised convolution (Knutsson and Westin 1993).

Everything is float64, or exact where the images are ``object`` arrays of fractions. Moments are about the window's own
mean, so that neither offsets nor magnitudes spoil them.
"""

import itertools
import math

import numpy as np

WANG2003 = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
PAD_MODES = {"same": "constant", "reflect": "reflect", "symmetric": "symmetric", "edge": "edge"}


def gaussian(size=11, sigma=1.5):
    weights = [math.exp(-((i - (size - 1) / 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return [weight / sum(weights) for weight in weights]


# --- one scale of one pair [*spatial, C] ----------------------------------------------------------------------


def of_each_axis(window, ndim):
    """The taps of every axis."""
    return window if np.ndim(window[0]) else [window] * ndim


def padded(x, padding, windows):
    """Half a window more at both ends of each spatial axis, as SciPy's filters see it: its centre is ``n // 2``."""
    if padding == "valid":
        return x
    margins = [(len(window) // 2, len(window) - 1 - len(window) // 2) for window in windows]
    return np.pad(x, [*margins, (0, 0)], PAD_MODES[padding])


def local_moments(a, b, *, window=None, padding="valid", covariance="population", where=None):
    """Maps of one pair: means, variances and covariance, and the share of each window that is masked."""
    windows = of_each_axis(gaussian() if window is None else window, a.ndim - 1)
    where = np.ones(a.shape, bool) if where is None else where
    missing = ~padded(where, padding, windows) & padded(np.ones(a.shape, bool), padding, windows)
    valid = ~missing  # zeros around the image are valid pixels
    a, b = (padded(np.where(where, x, 0), padding, windows) for x in (a, b))
    positions = [size - len(window) + 1 for size, window in zip(a.shape, windows, strict=False)]

    def window_sum(function, *maps):
        total = 0
        for offsets in itertools.product(*(range(len(window)) for window in windows)):
            here = tuple(slice(i, i + n) for i, n in zip(offsets, positions, strict=True))
            weight = math.prod(window[i] for window, i in zip(windows, offsets, strict=True))
            total = total + weight * function(*(x[here] for x in maps))
        return total

    mass = window_sum(lambda w: w, valid)
    mass = np.where(mass > 0, mass, 1)

    def expectation(function):
        return window_sum(lambda w, x, y: w * function(x, y), valid, a, b) / mass

    mean_a, mean_b = expectation(lambda x, y: x), expectation(lambda x, y: y)
    # The rounding of a mean of 1e15 is larger than the contrast of an image may be.
    rest_a, rest_b = expectation(lambda x, y: x - mean_a), expectation(lambda x, y: y - mean_b)
    variance_a = expectation(lambda x, y: (x - mean_a - rest_a) ** 2)
    variance_b = expectation(lambda x, y: (y - mean_b - rest_b) ** 2)
    covariance_ab = expectation(lambda x, y: (x - mean_a - rest_a) * (y - mean_b - rest_b))
    if covariance == "sample":
        n = math.prod(map(len, windows))
        variance_a, variance_b, covariance_ab = (n * x / (n - 1) for x in (variance_a, variance_b, covariance_ab))
    return mean_a, mean_b, variance_a, variance_b, covariance_ab, window_sum(lambda w: w, missing)


def local_terms(a, b, *, max_val=1.0, k1=0.01, k2=0.03, min_coverage=1.0, **options):
    """Maps of ``l`` and ``cs``, NaN at the positions that do not count."""
    mean_a, mean_b, variance_a, variance_b, covariance, missing = local_moments(a, b, **options)
    c1, c2 = (k1 * max_val) ** 2, (k2 * max_val) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast_structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    counted = missing <= 1 - min_coverage
    return np.where(counted, luminance, np.nan), np.where(counted, contrast_structure, np.nan)


def mean_per_channel(x):
    """The mean over the positions that count, NaN where none does."""
    columns = [column[column == column] for column in x.reshape(-1, x.shape[-1]).T]
    return np.array([column.mean() if column.size else np.nan for column in columns])


def corners(image, downsample="edge"):
    """The upper left, upper right, lower left and lower right ones of each 2x2 pixels, and so on."""
    odd = [size % 2 for size in image.shape[:-1]]
    none = [0] * len(odd)
    before = {"edge": none, "floor": none, "zero": odd, "edge_start": [max(odd)] * len(odd), "start": [1] * len(odd)}
    before, after = before[downsample], odd if downsample in ("edge", "zero") else none
    margins = [*zip(before, after, strict=True), (0, 0)]
    image = np.pad(image, margins, "constant" if downsample == "zero" else "edge")
    return [
        image[tuple(slice(i, i + size // 2 * 2, 2) for i, size in zip(corner, image.shape, strict=False))]
        for corner in itertools.product((0, 1), repeat=len(odd))
    ]


def halve(image, where, downsample="edge"):
    """The mean of the valid ones of 2x2 pixels, and which means are valid."""
    pixels = corners(np.where(where, image, 0), downsample)
    # The rule "zero" has no masks, and its zeros count.
    valid = [np.ones(x.shape, bool) for x in pixels] if downsample == "zero" else corners(where, downsample)
    count = sum(x.astype(int) for x in valid)
    return sum(pixels) / np.maximum(count, 1), count == len(valid) if downsample == "floor" else count > 0


def positive(x, negative="relu"):
    """What stands for a per-scale mean below its power."""
    if negative == "relu":
        return np.maximum(x, 0)
    if negative == "shift":
        return (1 + x) / 2
    return np.where(x >= 0.01, x, 0.01**2 / (0.02 - np.minimum(x, 0.01)))


# --- every pair of a batch ------------------------------------------------------------------------------------


def each_pair(function):
    """``function`` of one pair, applied to every pair of a batch, each with its ``max_val`` and the like."""

    def over_batch(a, b, *, spatial_ndim=2, where=None, **options):
        a, b = (x.astype(np.result_type(x.dtype, np.float64)) for x in (a, b))
        batch = a.shape[: -spatial_ndim - 1]
        options["where"] = np.broadcast_to(True if where is None else where, a.shape)
        if "max_val" in options:
            options["max_val"] = np.broadcast_to(options["max_val"], batch)
        if "power_factors" in options:
            scales = np.shape(options["power_factors"])[-1]
            options["power_factors"] = np.broadcast_to(options["power_factors"], (*batch, scales))
        own = options.keys() & {"where", "max_val", "power_factors"}
        values = [
            np.asarray(function(a[index], b[index], **options | {name: options[name][index] for name in own}))
            for index in np.ndindex(batch)
        ]
        return np.stack(values).reshape(batch + values[0].shape)

    return over_batch


@each_pair
def ssim_map(a, b, **options):
    luminance, contrast_structure = local_terms(a, b, **options)
    return luminance * contrast_structure


@each_pair
def ssim(a, b, **options):
    luminance, contrast_structure = local_terms(a, b, **options)
    return mean_per_channel(luminance * contrast_structure).mean()


def terms_of_pair(a, b, *, where, scales=5, downsample="edge", **options):
    means = []
    for scale in range(scales):
        if scale > 0:
            (a, _), (b, where) = halve(a, where, downsample), halve(b, where, downsample)
        luminance, contrast_structure = local_terms(a, b, where=where, **options)
        maps = (luminance, contrast_structure, luminance * contrast_structure)
        means.append([mean_per_channel(term) for term in maps])
    return np.stack(means, axis=1)


@each_pair
def ms_ssim_terms(a, b, **options):
    """Means of ``l``, ``cs`` and ``l cs``: ``[..., 3, scales, C]``."""
    return terms_of_pair(a, b, **options)


def scale_means(a, b, *, power_factors=WANG2003, padding="valid", luminance="last", **options):
    """What the powers are of, ``[scales, C]``: means of ``cs``, and of ``l cs`` at the last scale."""
    options["scales"] = len(power_factors)
    of_structure, of_last = padding if isinstance(padding, tuple) else (padding, padding)
    _, contrast_structure, similarity = terms_of_pair(a, b, padding=of_structure, **options)
    means = similarity if luminance == "all" else contrast_structure
    if of_last != of_structure:
        similarity = terms_of_pair(a, b, padding=of_last, **options)[2]
    means[-1] = similarity[-1]
    return means


def product(means, *, power_factors=WANG2003, negative="relu", channel_mean="after"):
    """MS-SSIM from the means, ``[scales, C]``."""
    if channel_mean == "before":
        means = means.mean(-1, keepdims=True)
    powers = [positive(mean, negative) ** weight for mean, weight in zip(means, power_factors, strict=True)]
    return np.prod(powers, axis=0).mean()


@each_pair
def ms_ssim(a, b, *, power_factors=WANG2003, negative="relu", channel_mean="after", **options):
    means = scale_means(a, b, power_factors=power_factors, **options)
    return product(means, power_factors=power_factors, negative=negative, channel_mean=channel_mean)


def ms_ssim_db(a, b, **options):
    with np.errstate(divide="ignore"):
        return -10 * np.log10(np.maximum(1 - ms_ssim(a, b, **options), 0))


# --- losses ---------------------------------------------------------------------------------------------------


def ssim_loss(a, b, **options):
    return 1 - ssim(a, b, **options)


def dssim_loss(a, b, **options):
    return (1 - ssim(a, b, **options)) / 2


def ms_ssim_loss(a, b, *, negative="soft", **options):
    return 1 - ms_ssim(a, b, negative=negative, **options)


def log_ms_ssim_loss(a, b, *, negative="soft", **options):
    return -np.log(ms_ssim(a, b, negative=negative, **options))


@each_pair
def l1(a, b, *, where, max_val=1.0):
    """The mean over valid pixels and channels, NaN where there is none."""
    difference = np.abs(a - b)[where]
    return difference.mean() / max_val if difference.size else np.nan


def without_l1(options):
    return {name: options[name] for name in options.keys() & {"where", "max_val", "spatial_ndim"}}


def ssim_l1_loss(a, b, *, weight=0.2, padding="same", **options):
    similarity = ssim(a, b, padding=padding, **options)
    return (1 - weight) * l1(a, b, **without_l1(options)) + weight * (1 - similarity)


def ms_ssim_l1_loss(a, b, *, alpha=0.84, form="pyramid", **options):
    if form == "pyramid":
        return alpha * ms_ssim_loss(a, b, **options) + (1 - alpha) * l1(a, b, **without_l1(options))
    return single_resolution(a, b, alpha=alpha, **options)


@each_pair
def single_resolution(a, b, *, alpha, where, max_val=1.0, min_coverage=1.0, **options):
    """Five windows of 33 taps at full resolution; L1 under the widest of them."""
    options |= {"where": where, "max_val": max_val, "padding": "same"}
    product = 1
    for sigma in (0.5, 1, 2, 4, 8):
        window = gaussian(33, sigma)
        widest = sigma == 8  # which alone decides where positions count
        coverage = min_coverage if widest else -1
        luminance, contrast_structure = local_terms(a, b, window=window, min_coverage=coverage, **options)
        product = product * contrast_structure * (luminance if widest else 1)
    difference = padded(np.where(where, np.abs(a - b), 0), "same", [window] * (a.ndim - 1))
    spread = 0
    for offsets in itertools.product(range(33), repeat=a.ndim - 1):
        here = tuple(slice(i, i + size) for i, size in zip(offsets, a.shape, strict=False))
        spread = spread + math.prod(window[i] for i in offsets) * difference[here]
    mean_l1 = spread.sum() / where.sum() / max_val if where.any() else np.nan
    return alpha * mean_per_channel(1 - product).mean() + (1 - alpha) * mean_l1


# --- small images ---------------------------------------------------------------------------------------------


def fit_power_factors(spatial_shape, *, filter_size=11, downsample="edge", power_factors=WANG2003):
    """Halves the sides until the window does not fit."""
    sides, fitting = list(spatial_shape), 0
    while fitting < len(power_factors) and min(sides) >= filter_size:
        fitting += 1
        sides = [side // 2 if downsample == "floor" else (side + 1) // 2 for side in sides]
    leading = power_factors[:fitting]
    return tuple(leading) if fitting == len(power_factors) else tuple(w / math.fsum(leading) for w in leading)
