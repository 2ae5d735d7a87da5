"""What is measured: a metric, and the shape of the two images it compares; or a test set of many sizes."""

from typing import NamedTuple

import numpy as np

TITLES = {"ssim": "SSIM", "ms_ssim": "MS-SSIM"}
PASSES = ("forward", "value_and_grad")


class Work(NamedTuple):
    """A metric of a pair of images ``[N, *spatial, C]``; its value is the mean over the batch."""

    metric: str
    shape: tuple[int, ...]
    # The other libraries need half a minute for value and gradient of the largest images: only ours is asked for it.
    passes_of_peers: tuple[str, ...] = PASSES

    @property
    def name(self) -> str:
        return f"{TITLES[self.metric]} {'x'.join(map(str, self.shape))}"

    @property
    def spatial_ndim(self) -> int:
        return len(self.shape) - 2

    @property
    def pixels(self) -> int:
        """Of one image of the pair, over the whole batch."""
        return int(np.prod(self.shape[:-1]))

    @property
    def input_bytes(self) -> int:
        """Of both images, in float32."""
        return 2 * 4 * int(np.prod(self.shape))

    def images(self) -> tuple[np.ndarray, np.ndarray]:
        """Noise on a slope, and the same with a tenth of other noise, in [0, 1]; made in place, to leave no garbage."""
        rng = np.random.default_rng(0)
        a, b = (rng.random(self.shape, np.float32) for _ in range(2))
        a *= 0.7
        a += np.linspace(0, 0.3, self.shape[-2], dtype=np.float32)[:, None]
        b *= 0.1
        b += 0.9 * a
        return a, b


class Crops(NamedTuple):
    """A test set: crops of photographs, of any sides in a range, each with a copy of it under noise."""

    number: int
    shortest: int
    longest: int

    @property
    def name(self) -> str:
        return f"{self.number} pairs, sides of {self.shortest} to {self.longest}"

    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """In uint8, ``[H, W, 3]``."""
        from skimage import data

        names = ("astronaut", "chelsea", "coffee", "rocket", "hubble_deep_field", "retina")
        photographs = [getattr(data, name)() for name in names]
        rng = np.random.default_rng(0)
        return [self._pair(photographs, rng) for _ in range(self.number)]

    def _pair(self, photographs, rng) -> tuple[np.ndarray, np.ndarray]:
        sides = rng.integers(self.shortest, self.longest, 2, endpoint=True)
        large_enough = [image for image in photographs if np.all(image.shape[:2] >= sides)]
        image = large_enough[rng.integers(len(large_enough))]
        starts = [rng.integers(whole - side, endpoint=True) for whole, side in zip(image.shape, sides, strict=False)]
        a = image[tuple(slice(start, start + side) for start, side in zip(starts, sides, strict=True))]
        return a, np.clip(a + rng.normal(0, 10, a.shape), 0, 255).astype(np.uint8)


class Plan(NamedTuple):
    """Everything one run measures."""

    checked: tuple[Work, ...]  # odd sides, where conventions differ most
    compared: tuple[Work, ...]
    in_own_process: tuple[Work, ...]
    launched: int | None  # so many libraries of the list; None is all
    evaluated: Crops
    native: tuple[Work, ...]
    compiled: Work  # the time to its first result is the best of several
    temporaries: tuple[Work, ...]
    scaled: tuple[Work, ...]
    largest: Work
    batched: Work
    implemented: tuple[Work, ...]
    trained: tuple[tuple[int, ...], ...]
    rounds: int
    processes: int  # for the best of several


BATCH = Work("ms_ssim", (8, 256, 256, 3))
HD = Work("ms_ssim", (1, 1080, 1920, 3))
UHD = Work("ms_ssim", (1, 2160, 3840, 3), passes_of_peers=("forward",))
VOLUME = Work("ssim", (1, 222, 222, 222, 1), passes_of_peers=("forward",))

FULL = Plan(
    checked=(
        Work("ssim", (2, 181, 187, 3)),
        Work("ms_ssim", (2, 181, 187, 3)),
        Work("ssim", (1, 21, 24, 27, 2)),
    ),
    compared=(
        BATCH,
        HD,
        UHD,
        Work("ssim", (8, 256, 256, 3)),
        Work("ssim", (1, 1080, 1920, 3)),
        Work("ssim", (32, 128, 128, 1)),
        Work("ssim", (1, 96, 96, 96, 1)),
    ),
    in_own_process=(BATCH, HD, Work("ssim", (8, 256, 256, 3)), VOLUME),
    launched=None,
    evaluated=Crops(24, 200, 800),
    native=tuple(
        Work(metric, (1, *sides, channels))
        for metric, channels in [("ssim", 1), ("ssim", 3), ("ms_ssim", 3)]
        for sides in [(256, 256), (512, 512), (1080, 1920), (2160, 3840)]
    ),
    compiled=BATCH,
    temporaries=(BATCH, HD, UHD),
    scaled=tuple(
        Work("ms_ssim", (1, *sides, 3)) for sides in [(256, 256), (512, 512), (1080, 1920), (2160, 3840), (4320, 7680)]
    ),
    largest=Work("ms_ssim", (1, 4320, 7680, 3)),
    batched=BATCH,
    implemented=(BATCH, HD),
    trained=((2, 176, 176, 3), (8, 256, 256, 3)),
    rounds=7,
    processes=3,
)

_SMALL = Work("ssim", (2, 48, 48, 3))  # compiles in a second
QUICK = Plan(
    checked=(Work("ssim", (1, 21, 24, 3)), Work("ms_ssim", (1, 177, 179, 1)), Work("ssim", (1, 13, 14, 15, 1))),
    compared=(Work("ms_ssim", (1, 176, 176, 1)), _SMALL, Work("ssim", (1, 16, 16, 16, 1))),
    in_own_process=(_SMALL,),
    launched=2,
    evaluated=Crops(2, 176, 240),
    native=(Work("ssim", (1, 64, 64, 3)), Work("ms_ssim", (1, 176, 176, 3))),
    compiled=_SMALL,
    temporaries=(_SMALL,),
    scaled=(_SMALL, Work("ssim", (1, 96, 96, 3))),
    largest=_SMALL,
    batched=_SMALL,
    implemented=(_SMALL,),
    trained=((1, 176, 176, 3),),
    rounds=2,
    processes=1,
)
