"""Teach a language model to reason with GRPO and verifiable rewards alone: R1-Zero in one file, on TRL.

It reproduces TinyZero on Countdown, and trains on every other task of preprocess.py, on several of them, or on one of
your own, by naming their data and their rewards in the YAML. It trains by GRPO where TinyZero trains by PPO: there is
no critic, and the advantage of a completion is its reward less the mean reward of its group, the completions sampled
from the same prompt.

    accelerate launch train_countdown.py                                          # whatever this machine has, CPU too
    accelerate launch train_countdown.py --config configs/qwen2.5-1.5b.yaml       # one GPU
    accelerate launch --config_file configs/accelerate/zero2.yaml train_countdown.py --config configs/qwen2.5-3b.yaml

Every number that is not TRL's own stands in the YAML, and a flag of the same name overrides it: --learning_rate 2e-6.
"""

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import ProgressCallback
from trl import GRPOConfig, ModelConfig, TrlParser

from r1zero.preflight import check as checks
from r1zero.report import console, run_folder
from r1zero.report import page as report
from r1zero.training import checkpoints, lora, loss_watch, reward_functions
from r1zero.training import generation as sampler
from r1zero.training import stopping as endings
from r1zero.training import vllm as vllm_settings


@dataclass
class ScriptArguments:
    """What TRL has no setting for."""

    data_dir: str = field(
        default="data/countdown",
        metadata={"help": "Folder with train.parquet and test.parquet, as preprocess.py writes them."},
    )
    reward_funcs: list[str] = field(
        default_factory=lambda: ["countdown_reward"],
        metadata={
            "help": "Functions of rewards.py, or your own as module:function; each scores the rows of its own task. "
            "reward_weights weighs them."
        },
    )
    completions_per_step: int | None = field(
        default=None,
        metadata={"help": "Completions of an optimizer step, over all processes: sets gradient_accumulation_steps."},
    )
    allow_unsandboxed_code: bool = field(
        default=False,
        metadata={"help": "Let code_reward run what the model wrote without a sandbox, where bubblewrap is missing."},
    )
    dry_run: bool = field(
        default=False,
        metadata={"help": "Print what the run will do and take, and what would stop it, and end before it starts."},
    )
    gpus: int | None = field(
        default=None,
        metadata={"help": "With --dry_run: plan for another machine, with so many GPUs; 0 for one without."},
    )
    gpu_memory: float | None = field(
        default=None, metadata={"help": "With --gpus: the memory of each in GB, that is, 10^9 bytes."}
    )
    strategy: str | None = field(
        default=None, metadata={"help": "With --gpus: a file of configs/accelerate, as zero3, not the recipe's own."}
    )
    trim_padding: bool = field(
        default=True, metadata={"help": "Compute no padding in the passes over completions: the same update, sooner."}
    )
    drop_finished: bool = field(
        default=True,
        metadata={"help": "Where transformers generates, drop completions that have ended; not with a sharded model."},
    )
    stop_on_nan: bool = field(
        default=True,
        metadata={"help": "End the run, and save the batch, where a loss, gradient or reward is NaN or infinite."},
    )
    price_per_hour: float | None = field(
        default=None,
        metadata={"help": "Price of the whole machine an hour, in any currency, to say what the run costs."},
    )
    show_every: int = field(
        default=20, metadata={"help": "Optimizer steps between two whole completions on the console; 0 for none."}
    )
    prepare: str | None = field(
        default=None,
        metadata={"help": "What python runs to make the recipe's missing data or model: preprocess.py countdown."},
    )


def main(script_args, training_args, model_args, reward_funcs):
    # Here, as a dry run, --help and a misspelt flag do without what takes another second
    from datasets import load_dataset
    from trl import GRPOTrainer, get_peft_config, get_quantization_config
    from trl.generation import vllm_generation

    from r1zero.training.trainer import TrimmedGRPOTrainer

    is_main = training_args.process_index == 0
    output_dir = Path(training_args.output_dir)
    resumed = training_args.resume_from_checkpoint  # a sound checkpoint, or None

    # An earlier run in the same folder is moved aside, never overwritten
    if is_main and resumed is None:
        run_folder.move_aside(output_dir)

    # Data: prompts are plain strings that hold the prefilled assistant turn. Every evaluation batch must be full, or
    # TRL's mean over batches would not be the mean over problems.
    files = {split: f"{script_args.data_dir}/{split}.parquet" for split in ("train", "test")}
    data = load_dataset("parquet", data_files=files)
    eval_batch = training_args.per_device_eval_batch_size * training_args.world_size
    held_out = data["test"].select(range(data["test"].num_rows // eval_batch * eval_batch))
    if is_main:
        total = data["test"].num_rows
        print(f"{data['train'].num_rows:,} training problems, {held_out.num_rows:,} of {total:,} held-out ones")

    # Model and trainer. Full fine-tuning keeps float32 weights: at a learning rate of 1e-6 bfloat16 would round the
    # updates away.
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        **(training_args.model_init_kwargs or {}),
    }
    if training_args.use_vllm and training_args.vllm_mode == "colocate":
        # The engine computes in the type of the update and samples from the run's seed, which TRL has no settings for
        vllm_generation.LLM = vllm_settings.engine(training_args, model_args)
    trainer = (TrimmedGRPOTrainer if script_args.trim_padding else GRPOTrainer)(
        model=model_args.model_name_or_path,
        reward_funcs=reward_functions.watch(reward_funcs, script_args.stop_on_nan),
        args=training_args,
        train_dataset=data["train"],
        eval_dataset=held_out,
        quantization_config=get_quantization_config(model_args),
        peft_config=get_peft_config(model_args),
    )
    lora.keep_base_exact(trainer.model)  # which TRL rounds with every push of an adapter to vLLM
    if script_args.drop_finished and sampler.processes_generate_alone(trainer):
        sampler.drop_finished_rows(trainer.model)
    trainer.remove_callback(ProgressCallback)  # which prints a dictionary
    lines = console.Console(held_out.num_rows, script_args.price_per_hour, script_args.show_every)
    signals = endings.Signals()  # Ctrl-C, and what a scheduler sends: a checkpoint is saved before the run ends
    for callback in (lines, signals, checkpoints.Sealer()):
        trainer.add_callback(callback)
    if script_args.stop_on_nan:
        trainer.add_callback(loss_watch.LossWatch(trainer))
    if is_main:
        arguments = (script_args, training_args, model_args)
        run_folder.write_config(output_dir / "config.yaml", *arguments, resumed=bool(resumed))

    # Train, and evaluate once more where the last step did not
    ending = None  # why the run ends early
    try:
        with signals:
            with contextlib.suppress(checkpoints.Complete):
                trainer.train(resume_from_checkpoint=resumed)
            ending = signals.ending(output_dir)
            evaluated = run_folder.evaluations(trainer.state.log_history)
            if not ending and evaluated and evaluated[-1]["step"] < trainer.state.global_step:
                trainer.evaluate()
    except endings.EXPECTED as error:
        ending = endings.explain(error, output_dir, trainer.state.global_step)

    # Save
    if not ending:
        trainer.save_model()
        trainer.create_model_card(model_name=output_dir.name)
    if is_main:
        lines.keep(training_args, trainer.state)
        metrics = report.write(output_dir)
        if not ending:
            report.complete_card(output_dir / "README.md", metrics, model_args.model_name_or_path)
    # Together: one that ends badly would take the first with it, which writes longest
    if not ending or ending.together:
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.end_training()
    if ending:
        endings.leave(ending)


if __name__ == "__main__":
    parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig), allow_abbrev=False)
    with endings.in_one_line():
        main(*checks.check(parser, sys.argv[1:]))
