"""Teach a language model to reason with GRPO and verifiable rewards alone: R1-Zero in one file, on TRL.

It reproduces TinyZero on Countdown, and trains on every other task of preprocess.py, on several of them, or on one of
your own, by naming their data and their rewards in the YAML. It trains by GRPO, TinyZero by PPO: there is no critic
here, and the advantage of a completion is its reward less the mean reward of its group, the completions sampled from
the same prompt.

    accelerate launch train_countdown.py                                          # whatever this machine has, CPU too
    accelerate launch train_countdown.py --config configs/qwen2.5-1.5b.yaml       # one GPU
    accelerate launch --config_file configs/accelerate/zero2.yaml train_countdown.py --config configs/qwen2.5-3b.yaml

Every number that is not TRL's own stands in the YAML, and a flag of the same name overrides it: --learning_rate 2e-6.
"""

import contextlib
import sys
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PrinterCallback, ProgressCallback
from trl import GRPOConfig, ModelConfig, TrlParser

from r1zero.preflight import check
from r1zero.report import console, page, run_folder
from r1zero.tasks.problem_files import with_text_prompts
from r1zero.training import checkpoints, generation, lora, nan_guard, phases, reward_functions, stopping


def setting(default, text):
    """Return a field with its default and its line of --help."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class ScriptArguments:
    """What TRL has no setting for."""

    data_dir: str = setting("data/countdown", "Folder with train.parquet and test.parquet: preprocess.py writes them.")
    reward_funcs: list[str] = setting(
        ["countdown_reward"], "Functions of rewards.py, or your own as module:function; reward_weights weighs them."
    )
    completions_per_step: int | None = setting(
        None, "Completions of an optimizer step, over all processes: sets gradient_accumulation_steps."
    )
    allow_unsandboxed_code: bool = setting(False, "Let code_reward run programs without a sandbox, if there is none.")
    dry_run: bool = setting(False, "Print what the run will do and take, and what would stop it, and end.")
    gpu: str | None = setting(None, "With --dry_run: plan for another machine, with this card, as h100 or a100-80.")
    gpus: int | None = setting(None, "With --dry_run: plan for another machine, with so many GPUs; 0 for one without.")
    gpu_memory: float | None = setting(None, "With --gpus: the memory of each in GB, that is, 10^9 bytes.")
    strategy: str | None = setting(None, "With --gpus: a file of configs/accelerate, as zero3, not the recipe's own.")
    trim_padding: bool = setting(True, "Compute no padding, and update on no group without a signal.")
    tokens_per_pass: int = setting(16_384, "Most tokens of a forward pass, padding included; with trim_padding.")
    drop_finished: bool = setting(True, "Drop completions that have ended, if transformers generates.")
    stop_on_nan: bool = setting(True, "End the run if a gradient or a reward is NaN or infinite.")
    price_per_hour: float | None = setting(None, "Price of all cards an hour, to say what the run costs.")
    show_every: int = setting(20, "Optimizer steps between two whole completions on the console; 0 for none.")
    prepare: str | None = setting(None, "What python runs to make the recipe's missing data or model.")


def main(script_args, training_args, model_args, reward_funcs):
    # Here, as a dry run, --help and a misspelt flag do without what takes another second
    from datasets import load_dataset
    from trl import GRPOTrainer, get_peft_config, get_quantization_config

    from r1zero.training.trainer import TrimmedGRPOTrainer

    is_main = training_args.process_index == 0
    output_dir = Path(training_args.output_dir)

    # Data. A prompt is a plain string that holds the beginning of the assistant's turn, and the model goes on from it.
    # Every evaluation batch must be full, or TRL's mean over batches would not be the mean over problems.
    data = load_dataset(
        "parquet", data_files={split: f"{script_args.data_dir}/{split}.parquet" for split in ("train", "test")}
    )
    data = {split: with_text_prompts(rows) for split, rows in data.items()}  # TinyZero's files have them in a message
    eval_batch = training_args.per_device_eval_batch_size * training_args.world_size
    held_out = data["test"].select(range(len(data["test"]) // eval_batch * eval_batch))
    if is_main:
        print(f"problems: {len(data['train']):,} to train on, {len(held_out):,} of {len(data['test']):,} held out")

    # Rewards: functions of completions and of the data's columns, each of which scores the rows of its own task
    scorers = [reward_functions.Scorer(function) for function in reward_funcs]

    # Model. Full fine-tuning keeps float32 weights: at a rate of 1e-6 bfloat16 would round the updates away.
    training_args.model_init_kwargs = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        **(training_args.model_init_kwargs or {}),
    }
    generation.prepare_vllm(training_args, model_args)  # vLLM's type and seed: TRL has no setting for either
    training_args.ddp_broadcast_buffers = False  # before every pass, of which the ranks run different numbers
    with stopping.refused_in_one_line():
        trainer = (TrimmedGRPOTrainer if script_args.trim_padding else GRPOTrainer)(  # passes without padding
            model=model_args.model_name_or_path,
            reward_funcs=scorers,
            args=training_args,
            train_dataset=data["train"],
            eval_dataset=held_out,
            quantization_config=get_quantization_config(model_args),
            peft_config=get_peft_config(model_args),
        )
    trainer.tokens_per_pass = script_args.tokens_per_pass

    # What else is added to TRL; docs/differences-from-tinyzero.md lists all of it
    lora.keep_base_exact(trainer.model)  # TRL merges the adapter on every weight sync, which rounds a 16-bit base
    if not training_args.push_to_hub:
        lora.name_base_by_whole_path(trainer.model)  # the adapter then loads from any folder
    if script_args.drop_finished and generation.processes_generate_alone(trainer):
        # transformers computes every row until the longest has ended, and accelerate casts the weights for each token
        generation.drop_finished_rows(trainer.model, trainer.accelerator.autocast)
    if script_args.stop_on_nan:
        nan_guard.watch(trainer)  # TRL takes a NaN reward for an abstention, and Trainer takes a step with a NaN loss
    lines = console.Console(scorers, len(held_out), script_args.price_per_hour, script_args.show_every)
    phases.watch(trainer, lines.show)  # TRL sends the time of each call to the trackers alone
    for callback in (ProgressCallback, PrinterCallback):  # they print dictionaries
        trainer.remove_callback(callback)
    run = stopping.Stopping(trainer)  # Ctrl-C, and what a scheduler sends: a checkpoint is saved before the run ends
    for callback in (lines, run, checkpoints.Sealer()):  # Trainer takes the newest checkpoint unseen
        trainer.add_callback(callback)
    if is_main:  # an earlier run's results are never overwritten
        run_folder.begin(scorers, script_args, training_args, model_args)

    # Train, and evaluate once more if the last step did not
    with run:
        with contextlib.suppress(checkpoints.Complete):  # a resumed run may have done all of its steps
            trainer.train(training_args.resume_from_checkpoint)  # of a sound checkpoint, or None
        if not run.is_early and run_folder.needs_evaluation(trainer.state, training_args):
            trainer.evaluate()

    # Save
    if not run.is_early:
        trainer.save_model()
        trainer.create_model_card(model_name=output_dir.name)
    if is_main:
        lines.save(training_args, trainer.state)
        metrics = page.write(output_dir)
        if not run.is_early:
            page.complete_card(output_dir / "README.md", metrics, model_args.model_name_or_path)
            run_folder.push_results(trainer)
    run.leave()


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a model or a problem writes what a terminal may lack
    parser = TrlParser((ScriptArguments, GRPOConfig, ModelConfig), allow_abbrev=False)
    with stopping.in_one_line():
        main(*check.check(parser, sys.argv[1:]))
