"""All trials of a search, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from statistics import median

from kandiga_run.tune.settings import Settings

#: The exchange whose time is made as short as possible: tokens of the prompt and of the answer.
PROMPT_TOKENS, ANSWER_TOKENS = 256, 128

# Two runs of the same settings differ by this much on a quiet machine.
_LEAST_GAIN = 0.03
# One run of each proves nothing, and the fastest was chosen for its luck, too.
_LEAST_RUNS = 2


@dataclass(frozen=True)
class Speed:
    """Tokens a second of one measurement."""

    prefill: float
    decode: float

    @property
    def exchange_seconds(self) -> float:
        """Return the time of a prompt and an answer."""
        return PROMPT_TOKENS / self.prefill + ANSWER_TOKENS / self.decode


@dataclass(frozen=True)
class Trial:
    """Settings, and what was measured with them; several times when it was close."""

    settings: Settings
    speeds: tuple[Speed, ...] = ()
    #: what the engine made of "auto"
    residency: str = ""
    bytes_read_per_token: float = 0.0
    #: memory the process had at most
    peak_bytes: int = 0
    error: str | None = None

    @property
    def speed(self) -> Speed | None:
        """Return the medians, None when nothing was measured."""
        if not self.speeds:
            return None
        return Speed(
            median(speed.prefill for speed in self.speeds),
            median(speed.decode for speed in self.speeds),
        )

    @property
    def exchange_seconds(self) -> float:
        """Return the median time of an exchange; infinite when nothing was measured."""
        times = [speed.exchange_seconds for speed in self.speeds]
        return median(times) if times else float("inf")

    def joined(self, other: Trial) -> Trial:
        """Return this trial with the measurements, or the failure, of another one."""
        return replace(self, speeds=self.speeds + other.speeds, error=self.error or other.error)


@dataclass
class Outcome:
    """What a search has found so far; the first trial is of the settings without tuning."""

    trials: list[Trial] = field(default_factory=list)
    #: Whether every trial that was planned was made.
    finished: bool = False
    notes: list[str] = field(default_factory=list)

    @property
    def usual(self) -> Trial | None:
        """Return the trial of the settings that are taken without tuning."""
        return self.trials[0] if self.trials else None

    @property
    def fastest(self) -> Trial | None:
        """Return the trial with the shortest exchange, None when all failed at some time."""
        measured = [trial for trial in self.trials if trial.speeds and not trial.error]
        return min(measured, key=lambda trial: trial.exchange_seconds, default=None)

    @property
    def best(self) -> Trial | None:
        """Return the fastest trial, or the usual one where the gain is no more than noise."""
        usual, fastest = self.usual, self.fastest
        if usual is None or fastest is None or not usual.speeds:
            return fastest
        return fastest if is_faster(fastest, usual) else usual

    def put(self, trial: Trial) -> Trial:
        """Add a trial, to an earlier one of the same settings if there is one; return the sum."""
        for number, known in enumerate(self.trials):
            if known.settings == trial.settings:
                self.trials[number] = known.joined(trial)
                return self.trials[number]
        self.trials.append(trial)
        return trial


def is_faster(one: Trial, other: Trial) -> bool:
    """Whether all runs of one were faster than all of the other, and the gain is worth it."""
    slowest = max(speed.exchange_seconds for speed in one.speeds)
    quickest = min(speed.exchange_seconds for speed in other.speeds)
    has_runs = min(len(one.speeds), len(other.speeds)) >= _LEAST_RUNS
    return has_runs and slowest < quickest and gain(other, one) >= _LEAST_GAIN


def gain(usual: Trial, other: Trial) -> float:
    """Return how much faster an exchange is than with the usual settings: 0.1 is ten percent."""
    return usual.exchange_seconds / other.exchange_seconds - 1
