"""A strict stand-in for vLLM 0.30 on the CPU: what TRL 1.16 calls in colocate mode, and not a name more.

`LLM` wraps the transformers model of the same folder and really samples from it. What vLLM would refuse it refuses,
and what vLLM would do silently wrong, such as sampling from weights that a sleep has discarded, it refuses too. Every
call is one line of the JSON-lines file named by VLLM_STAND_IN_LOG, with the process's rank; beside that file, the
weights that arrived before the n-th generation lie in FILE.rankR.N.safetensors.

Put this file's parent folder on PYTHONPATH, with the folder vllm-0.30.0.dist-info that gives TRL the version.
"""

import json
import os
import sys
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from unittest import mock

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.integrations import deepspeed

from vllm.sampling_params import SamplingParams, StructuredOutputsParams

__version__ = "0.30.0"
__all__ = ["LLM", "RequestOutput", "SamplingParams", "StructuredOutputsParams"]

# What TRL's client of a vLLM server imports; colocate mode calls none of it
for module, name in {
    "vllm.utils": None,
    "vllm.utils.network_utils": "get_ip",
    "vllm.distributed": None,
    "vllm.distributed.weight_transfer": None,
    "vllm.distributed.weight_transfer.nccl_common": "trainer_init",
    "vllm.distributed.weight_transfer.packed_tensor": "packed_nccl_broadcast_producer",
}.items():
    sys.modules[module] = ModuleType(module)
    if name:
        setattr(sys.modules[module], name, None)

# vllm/platforms/cuda.py, compute capability 8.0 and above; below it, float16 comes first and there is no bfloat16
SUPPORTED_DTYPES = [torch.bfloat16, torch.float16, torch.float32]
NAMED_DTYPES = {"half": torch.float16, "float": torch.float32} | {
    str(dtype).removeprefix("torch."): dtype for dtype in SUPPORTED_DTYPES
}


def resolve_dtype(dtype, config_dtype):
    """The engine's dtype, by _get_and_verify_dtype of vllm/config/model.py.

    dtype: str or torch.dtype as given to LLM; config_dtype: torch.dtype of the checkpoint's config.json, or None.
    """
    if dtype != "auto":
        return dtype if isinstance(dtype, torch.dtype) else NAMED_DTYPES[dtype.lower()]
    if config_dtype in (None, torch.float32) or config_dtype not in SUPPORTED_DTYPES:
        return SUPPORTED_DTYPES[0]
    return config_dtype


@dataclass
class Logprob:
    logprob: float
    rank: int
    decoded_token: str | None = None


@dataclass
class CompletionOutput:
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]]
    finish_reason: str
    index: int = 0


@dataclass
class RequestOutput:
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput] = field(default_factory=list)


class LLM:
    """Takes the arguments that TRL gives, and dtype. Another one is a TypeError until someone has looked it up."""

    def __init__(
        self,
        model: str,
        *,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        quantization: str | None = None,
        trust_remote_code: bool = False,
        seed: int = 0,
        gpu_memory_utilization: float = 0.92,
        max_model_len: int | None = None,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        enable_sleep_mode: bool = False,
        model_impl: str = "auto",
        distributed_executor_backend: str | None = None,
        logprobs_mode: str = "raw_logprobs",
    ):
        arguments = {name: value for name, value in locals().items() if name != "self"}
        config = AutoConfig.from_pretrained(model)
        self.dtype = resolve_dtype(dtype, config.dtype)
        self._generations = 0
        self._record("LLM", **arguments, engine_dtype=str(self.dtype).removeprefix("torch."))

        if distributed_executor_backend != "external_launcher" or logprobs_mode != "processed_logprobs":
            raise NotImplementedError("only TRL's external_launcher and processed_logprobs")
        if quantization is not None or model_impl not in ("auto", "vllm", "transformers"):
            raise NotImplementedError(f"quantization {quantization}, model_impl {model_impl}")
        missing = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys()
        if missing:
            raise ValueError(f"external_launcher needs {missing}")
        if int(os.environ["WORLD_SIZE"]) % tensor_parallel_size:
            raise ValueError(f"{os.environ['WORLD_SIZE']} processes do not divide by {tensor_parallel_size}")
        if not 0 < gpu_memory_utilization <= 1:
            raise ValueError(f"gpu_memory_utilization {gpu_memory_utilization} is not in (0, 1]")
        longest = config.max_position_embeddings
        if max_model_len is not None and max_model_len > longest:
            raise ValueError(f"max_model_len {max_model_len} is greater than the config's {longest}")

        # Under ZeRO-3, from_pretrained would give this model, too, out to the processes
        with mock.patch.object(deepspeed, "_hf_deepspeed_config_weak_ref", None):
            self._model = AutoModelForCausalLM.from_pretrained(model, dtype=self.dtype, device_map=None).eval()
        self._parameters = dict(self._model.named_parameters())  # tied weights once, under their first name
        self._arrived = {}
        self._awake = {"weights", "kv_cache"}
        self._seed, self._sleep_mode = seed, enable_sleep_mode
        self.llm_engine = SimpleNamespace(
            model_config=SimpleNamespace(max_model_len=max_model_len or longest, dtype=self.dtype),
            model_executor=SimpleNamespace(
                driver_worker=SimpleNamespace(
                    model_runner=SimpleNamespace(model=SimpleNamespace(load_weights=self._load_weights))
                )
            ),
        )

    def _record(self, call, **details):
        line = json.dumps({"call": call, "rank": int(os.environ.get("RANK", 0)), **details})
        descriptor = os.open(os.environ["VLLM_STAND_IN_LOG"], os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        os.write(descriptor, f"{line}\n".encode())  # one write: several processes share the file
        os.close(descriptor)

    def sleep(self, level: int = 1):
        self._record("sleep", level=level)
        if not self._sleep_mode:
            raise ValueError("sleep without enable_sleep_mode")
        if level not in (1, 2):
            raise NotImplementedError(f"sleep level {level}")
        self._awake = set()
        if level == 2:  # the weights are gone
            for parameter in self._parameters.values():
                parameter.data.fill_(torch.nan)

    def wake_up(self, tags: list[str] | None = None):
        self._record("wake_up", tags=tags)
        tags = {"weights", "kv_cache"} if tags is None else set(tags)
        if tags - {"weights", "kv_cache"} or tags & self._awake:
            raise ValueError(f"wake_up({tags}) while {self._awake} are awake")
        self._awake |= tags

    def reset_prefix_cache(self):
        self._record("reset_prefix_cache")
        return True

    def _load_weights(self, weights):
        """weights: list of (name, tensor); names and shapes must be the model's, the dtype becomes the engine's."""
        weights = [(name, tensor) for name, tensor in weights]
        told = [{"name": n, "shape": list(t.shape), "dtype": str(t.dtype).removeprefix("torch.")} for n, t in weights]
        self._record("load_weights", weights=told)
        if "weights" not in self._awake:
            raise RuntimeError("load_weights writes to memory that a sleep has freed")
        for name, tensor in weights:
            if name not in self._parameters:
                raise ValueError(f"There is no module or parameter named {name!r}")
            if tensor.shape != self._parameters[name].shape:
                raise ValueError(f"{name}: {list(tensor.shape)} arrived for {list(self._parameters[name].shape)}")
            self._parameters[name].data.copy_(tensor.detach())
            self._arrived[name] = tensor.detach().cpu().clone().contiguous()

    @torch.no_grad()
    def generate(self, prompts, sampling_params, *, use_tqdm: bool = True):
        """prompts: list of {"prompt_token_ids": list[int]}; returns one RequestOutput a prompt, in order."""
        if extra := {key for prompt in prompts for key in prompt} - {"prompt_token_ids"}:
            raise NotImplementedError(f"prompts with {extra}")
        prompts = [prompt["prompt_token_ids"] for prompt in prompts]
        params, longest = sampling_params, self.llm_engine.model_config.max_model_len
        if self._awake != {"weights", "kv_cache"}:
            raise RuntimeError(f"generate while only {self._awake} are awake")
        if gone := [name for name, parameter in self._parameters.items() if parameter.isnan().any()]:
            raise RuntimeError(f"generate before these were loaded again, which a sleep discarded: {gone}")
        if params.n != 1 or max(map(len, prompts)) + 1 > longest:
            raise ValueError(f"n {params.n}, a prompt of {max(map(len, prompts))} tokens with max_model_len {longest}")

        width, settings = max(map(len, prompts)), self._model.generation_config
        eos = settings.eos_token_id
        eos = set(eos if isinstance(eos, list) else [eos])
        ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])  # (B, T), padded on the left
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1000 * self._seed + self._generations)
            output = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=GenerationConfig(
                    do_sample=True,
                    max_new_tokens=params.max_tokens,
                    temperature=params.temperature,
                    top_p=params.top_p,
                    top_k=params.top_k,
                    min_p=params.min_p,
                    repetition_penalty=params.repetition_penalty,
                    eos_token_id=sorted(eos),
                    pad_token_id=min(eos),
                    output_scores=True,
                    return_dict_in_generate=True,
                ),
                synced_gpus=False,  # the processes of a sharded trainer sample different prompts
            )
        tokens = output.sequences[:, width:].tolist()  # (B, C)
        logprobs = torch.stack(output.scores, 1).float().log_softmax(-1)  # (B, C, V), after temperature and filters
        results = []
        for row, prompt in enumerate(prompts):
            ends = [place + 1 for place, token in enumerate(tokens[row]) if token in eos]
            completion = tokens[row][: min([*ends, longest - len(prompt), len(tokens[row])])]
            chosen = [logprobs[row, place, token].item() for place, token in enumerate(completion)]
            ranks = [int((logprobs[row, place] > chosen[place]).sum()) + 1 for place in range(len(completion))]
            steps = [{t: Logprob(p, r)} for t, p, r in zip(completion, chosen, ranks, strict=True)]
            reason = "stop" if completion[-1] in eos else "length"
            results.append(RequestOutput(prompt, [CompletionOutput(completion, steps, reason)]))

        self._record(
            "generate",
            number=self._generations,
            prompts=prompts,
            completions=[result.outputs[0].token_ids for result in results],
            sampling_params=vars(params),
            use_tqdm=use_tqdm,
        )
        log, rank = os.environ["VLLM_STAND_IN_LOG"], os.environ["RANK"]
        save_file(self._arrived, f"{log}.rank{rank}.{self._generations}.safetensors")
        self._arrived = {}
        self._generations += 1
        return results
