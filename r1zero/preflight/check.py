"""What can be found wrong before a model is loaded: one list of errors, each a line to act on, and the plan."""

import importlib
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from r1zero import files, processes, schedule
from r1zero.estimate import plan
from r1zero.grading.verdict import CORRECT
from r1zero.preflight import data, hardware, model, prepare, recipe
from r1zero.preflight.machine import Machine
from r1zero.report import run_folder
from r1zero.training import checkpoints, lora, reward_functions

UNCHECKED = "not checked, as only that machine can tell: its driver, packages, disk, weights and your own functions"


def check(parser, argv):
    """Return what train_countdown.py trains with, once nothing is wrong: its three dataclasses and reward functions.

    parser: a TrlParser; argv: list[str]. Without --config, the recipe for this machine is taken. Prints the plan.
    Exits with status 1 and every error found if something is wrong, and for --dry_run: with 1 if it will not fit.
    """
    # Every setting, for this machine or for one that flags describe
    flags = recipe.read_flags(parser, argv)
    is_described = {"gpu", "gpus", "gpu_memory", "strategy"} & flags.given.keys()
    machine = Machine.described(flags) if is_described else Machine.here()
    path, values = recipe.resolve(parser, flags, machine)
    notices = recipe.fit(values, machine.processes)
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # of a launcher: transformers would else train with it
        os.environ["ACCELERATE_MIXED_PRECISION"] = schedule.mixed_precision(values) or "no"
    if machine.is_here and (values.use_cpu or machine.strategy.offload):  # DeepSpeed's AdamW is then on the CPU
        processes.take_threads()

    # What the recipe makes; a dry run only says so
    unmade = []
    if not values.dry_run:
        prepare.make(values, flags.given)
    elif unmade := [file.parent for file in prepare.missing(values, flags.given)]:
        notices.append(
            f"not there yet: {' and '.join(map(str, unmade))}; a run makes them with python {values.prepare}"
        )

    # What the run is given, and what is wrong with it, with the settings and with the machine
    functions, errors = read_rewards(values, machine)
    splits, unreadable = data.read(values, optional=not machine.is_here or Path(values.data_dir) in unmade)
    if splits:
        notices += [notice for file in splits for notice in file.notices]
        notices += recipe.fit_evaluation(values, splits[1].rows, machine.processes)
    errors += [*hardware.errors(values, machine), *recipe.save_errors(values, machine.processes)]
    errors += [*lora.setting_errors(values), *unreadable, *row_errors(values, splits, machine.processes)]
    shape, unavailable = model.read(values, elsewhere=not machine.is_here)
    if shape is None and Path(values.model_name_or_path or "") in unmade:
        unavailable = []
    if functions is not None and machine.is_here:
        errors += reward_errors(functions, splits, shape and shape.tokenizer)
    if shape and shape.tokenizer:
        notices += data.template_notices(splits, values, shape.tokenizer)
    longest, unmeasured = model.longest_prompt([prompt for file in splits for prompt in file.prompts], shape)
    if not longest and values.use_vllm and values.vllm_max_model_length:  # a recipe leaves room for its prompts
        longest = max(0, values.vllm_max_model_length - values.max_completion_length)
    errors += [*unavailable, *unmeasured, *model.fit_errors(values, shape, longest)]
    rows, held_out = [file.rows for file in splits] or (None, None)
    steps = schedule.schedule(values, rows, machine.processes)["steps"]
    planned = plan.Plan([], {}, fits=True)
    if shape:
        of_run = (values, shape.parameters, rows, longest, machine.strategy, machine.card)
        planned = plan.make_plan(*of_run)
        is_open = "vllm_gpu_memory_utilization" not in flags.given
        if is_open and (lowered := recipe.fit_vllm(values, planned.peaks, machine.card)):
            notices += lowered
            planned = plan.make_plan(*of_run)
        planned.lines += machine_lines(values, shape, rows, held_out, longest, machine)
    resumed = None
    if machine.is_here and processes.is_main_process():
        choice = checkpoints.choose(values, machine.strategy, steps)
        resumed = choice.checkpoint
        errors += [*choice.errors, *output_errors(values, shape, rows, machine.strategy, resumed)]
        notices += choice.notices
        notices += [f"resumes from {resumed}"] if resumed else []

    # The plan, then what is wrong
    if processes.is_main_process():
        if not machine.is_here:
            print(f"planned for {machine.name}, started with configs/accelerate/{machine.file.name}\n{UNCHECKED}")
        print("\n".join([*notices, *planned.lines]), flush=True)
    if machine.is_here and not errors:
        try:
            script_args, training_args, model_args = parser.parse_dict(vars(values), allow_extra_keys=True)
            errors = late_errors(training_args, shape, steps)
        except ValueError as error:  # of TRL or transformers
            errors = [str(error)]
    if errors:
        processes.stop(f"{path} cannot run {'' if machine.is_here else 'there '}as it is", errors)
    if values.dry_run:
        sys.exit(0 if planned.fits else 1)
    training_args.resume_from_checkpoint = agreed(resumed)
    if planned.peaks:  # for the line that sets it beside what the run took, and for the MFU
        training_args.estimated_memory = max(planned.peaks.values()) / plan.GIB
        training_args.peak_operations = machine.peak and machine.peak.operations
    return script_args, training_args, model_args, functions


def late_errors(args, shape, steps):
    """Return what Trainer finds wrong when it starts to train, with the earlier run moved aside (list of lines).

    args: TrainingArguments; shape: model.Model, or None; steps: of the run, None if not known.
    """
    from transformers import Trainer, get_scheduler  # here, as this takes a second

    sgd, steps = torch.optim.SGD([torch.zeros(1)]), steps or 1
    of_scheduler = (sgd, args.get_warmup_steps(steps), steps, args.lr_scheduler_kwargs)
    late = {
        ("optim", "optim_args"): lambda: shape and Trainer.get_optimizer_cls_and_kwargs(args, shape.parameters),
        ("lr_scheduler_type", "lr_scheduler_kwargs"): lambda: get_scheduler(args.lr_scheduler_type, *of_scheduler),
        ("use_liger_kernel",): lambda: args.use_liger_kernel and importlib.import_module("liger_kernel.transformers"),
    }
    errors = []
    for names, resolve in late.items():
        try:
            resolve()
        except Exception as error:  # each library's own kinds
            found = " and ".join(f"{name} {checkpoints.as_plain(getattr(args, name))}" for name in names)
            reason = f"{type(error).__name__}: {files.one_line(error)}"
            errors.append(f"{found} cannot be used ({reason}): give it what it lacks, or leave it out")
    return errors


def machine_lines(values, shape, rows, held_out, longest, machine):
    """Return the lines of the plan on vLLM's server, the least time, the processor and the tokenizer (list[str]).

    shape: model.Model; rows, held_out: problems of train and test, or None; longest: tokens of the longest prompt.
    """
    lines = []
    if values.use_vllm and values.vllm_mode == "server":
        lines.append(f"server: start it with {hardware.serve_command(values)}")
    in_bf16 = schedule.mixed_precision(values) == "bf16"
    able, rate = None, None
    if values.use_cpu and machine.is_here:
        rate = hardware.product_rate(torch.bfloat16 if in_bf16 else torch.float32)
        able = {"operations": rate, "bytes": math.inf}
    elif machine.peak and not values.use_cpu:
        able = machine.peak._asdict()
    if able:
        lines.append(plan.time_line(able, values, shape.parameters, rows, held_out, longest, machine.strategy))
    if rate and (in_bf16 or shape.parameters.num_parameters() > 10**8):
        other = hardware.product_rate(torch.float32 if in_bf16 else torch.bfloat16)
        speed = rate / other if in_bf16 else other / rate
        advice = "" if in_bf16 == (speed > 1) else f": pass --bf16 {str(not in_bf16).lower()}"
        if in_bf16 or advice:
            lines.append(f"processor: multiplies matrices {speed:.2g} times as fast in bfloat16 as in float32{advice}")
    if shape.tokenizer is None:
        lines.append(f"{values.model_name_or_path} is not here: its shape is taken from r1zero/estimate")
    elif shape.tokenizer.pad_token is None:
        lines.append(f"padding: the tokenizer has no pad_token, so its eos_token, {shape.tokenizer.eos_token}, pads")
    return lines


def read_rewards(values, machine):
    """Return the reward functions (list, None if one cannot be had) and the errors. On another machine, only ours."""
    names = [name for name in values.reward_funcs if machine.is_here or ":" not in name]
    is_allowed = values.allow_unsandboxed_code or not machine.is_here
    try:
        return reward_functions.resolve(names, values.data_dir, is_allowed), []
    except (ValueError, RuntimeError) as error:  # RuntimeError: no sandbox for code_reward
        return None, [files.one_line(error)]


def reward_errors(functions, splits, tokenizer):
    """Return what keeps the rewards from paying for right answers (list of lines, at most one a function and file).

    A right answer of each of the first rows goes through the tokenizer, as a completion does in TRL, and the function
    must give it the most that its task is worth. If nobody can say a right answer, an empty completion is scored.
    functions: reward functions, with a task or perhaps `right_answer(row)`; splits: list[data.File]; tokenizer: the
    model's, or None if it is not here.
    """
    errors = []
    for file in splits:
        columns = {name: column for name, column in file.first.items() if name != "prompt"}
        prompts = file.first["prompt"]
        scored = [False] * len(prompts)
        for function in functions:
            try:
                answers = [right_answer(function, columns, row) for row in range(len(prompts))]
                texts = [text and as_decoded(text, tokenizer) for text in answers]
                completions = [text or "" for text in texts]
                if not isinstance(prompts[0], str):
                    completions = [[{"role": "assistant", "content": text}] for text in completions]
                given, verdicts = reward_functions.score(function, prompts, completions, columns)
            except Exception as error:  # a user's own function may raise anything
                errors.append(
                    f"{file.path} has the columns {list(file.first)}, with which {function.__name__} cannot work "
                    f"({type(error).__name__}: {files.one_line(error)})"
                )
                scored = [True] * len(prompts)
                continue
            most = function.task.most if hasattr(function, "task") else None
            scored = [was or reward is not None for was, reward in zip(scored, given, strict=True)]
            for row, (answer, text, reward) in enumerate(zip(answers, texts, given, strict=True)):
                is_short = reward is None or (most is not None and reward < most)
                is_wrong = verdicts[row] is not None and verdicts[row].status != CORRECT
                if answer is not None and (is_short or is_wrong):
                    lost = "" if text == answer else f", of which the tokenizer leaves {files.shown(text)}"
                    errors.append(
                        f"{file.path}, row {row}: the right answer is {files.shown(answer)}{lost}, and "
                        f"{function.__name__} gives it {reward}, wanted {most or 'the verdict correct'}: name a model "
                        "whose tokenizer keeps it, or mend the row"
                    )
                    break
        if not all(scored):
            row = scored.index(False)
            source = f"of {columns['data_source'][row]}" if "data_source" in columns else "of another task"
            errors.append(
                f"{scored.count(False):,} of the first {len(scored):,} rows of {file.path} get no reward from any of "
                f"reward_funcs (row {row} is {source}): name the function for them too"
            )
    return errors


def right_answer(function, columns, row):
    """Return a completion (str) that is right for a row of the data's columns (dict), or None if nobody can say one.

    Raises ValueError, with the row, if there is none.
    """
    of_row = {name: column[row] for name, column in columns.items()}
    if not hasattr(function, "task"):
        text = function.right_answer(of_row) if hasattr(function, "right_answer") else None
        if not isinstance(text, str | None):
            raise ValueError(f"row {row}: right_answer returned {text!r}, wanted a text or None")
        return text
    values = [reward_functions.read_column(of_row, name) for name in function.task.columns]
    if values[-1] is None:  # a row of another task
        return None
    try:
        return function.task.right(*values)
    except ValueError as error:
        raise ValueError(f"row {row}: {error}") from error


def as_decoded(text, tokenizer):
    """Return a completion as TRL decodes it. tokenizer: the model's; None changes nothing."""
    if tokenizer is None:
        return text
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokenizer.decode(ids, skip_special_tokens=True)


def row_errors(values, splits, ranks):
    """Return data that is too small for one generation, or for one batch of an evaluation. splits: list[data.File]."""
    if not splits:
        return []
    train, test = splits
    prompts = schedule.schedule(values, train.rows, ranks)["prompts"]
    errors = []
    if train.rows < prompts:
        errors.append(
            f"{train.path} has {train.rows} rows, fewer than the {prompts} prompts of one generation, so that no step "
            "would be done: lower --completions_per_step or --steps_per_generation, or add rows"
        )
    at_once = values.per_device_eval_batch_size * ranks
    if schedule.evaluates(values) and test.rows < at_once:
        errors.append(f"{test.path} has {test.rows} rows, fewer than a group for each process: add rows")
    return errors


def output_errors(values, shape, rows, strategy, resumed):
    """Return an output folder that cannot be written or claimed, or a disk that is too small (list of lines).

    shape: model.Model, or None; rows: training problems, or None; resumed: the checkpoint to go on from, or None.
    """
    output = Path("trainer_output" if values.output_dir is None else values.output_dir)
    for name in ("model_name_or_path", "data_dir"):  # of an earlier run: it is moved aside
        given = getattr(values, name)
        if given and Path(given).is_dir() and Path(given).resolve().is_relative_to(output.resolve()):
            return [
                f"{name} {given} lies in output_dir {output}, whose place this run takes: name another --output_dir"
            ]
    if Path.cwd().is_relative_to(output.resolve()):
        return [f"output_dir {output} is the folder of this command, or around it: name another with --output_dir"]
    existing = next(folder for folder in (output, *output.resolve().parents) if folder.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        return [f"output_dir {output} cannot be written to ({error}): name another with --output_dir"]
    if shape is not None:
        there = len(checkpoints.by_step(output)) if resumed else 0
        copies, needed = plan.disk(values, shape.parameters.num_parameters(), rows, strategy, there)
        free = shutil.disk_usage(existing).free
        if free < needed:
            return [
                f"output_dir {output} has {free / 1e6:,.0f} MB free and {copies} with the final model take "
                f"{needed / 1e6:,.0f} MB: free some, name another --output_dir, or set --save_total_limit 1 or a "
                "greater --save_steps"
            ]
    if values.dry_run:
        return []
    try:
        run_folder.claim(output)
    except ValueError as error:
        return [str(error)]
    except OSError as error:
        print(f"{error}: see to it yourself that no second run writes there", flush=True)
    return []


def agreed(checkpoint):
    """Return the path (str, or None) of the checkpoint that the main process has chosen, on every process.

    Exits on a machine that does not see it.
    """
    state, chosen = PartialState(), [checkpoint and str(checkpoint)]
    if state.num_processes > 1:
        broadcast_object_list(chosen)
    if chosen[0] and not Path(chosen[0]).is_dir():
        advice = "let all machines share the folder of --output_dir, or copy the checkpoint there"
        processes.stop("the checkpoint to resume from is not here", [f"{chosen[0]} does not exist: {advice}"])
    return chosen[0]
