"""The stand-in's sampling parameters: those that TRL gives."""

from dataclasses import dataclass


@dataclass
class StructuredOutputsParams:
    """Only imported: the recipes use no structured outputs."""

    regex: str


@dataclass
class SamplingParams:
    n: int = 1
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int = 16
    logprobs: int | None = None

    def __post_init__(self):
        """The limits of vLLM's own _verify_args, and what the stand-in has not."""
        if not 0 < self.temperature <= 2 or not 0 < self.top_p <= 1 or self.top_k < 0 or not 0 <= self.min_p <= 1:
            raise ValueError(f"out of range: {self}")
        if self.repetition_penalty <= 0 or self.max_tokens < 1 or self.logprobs != 0:
            raise ValueError(f"out of range, or not the sampled token's log-probability alone: {self}")
