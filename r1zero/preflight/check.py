"""What can be found wrong before a model is loaded, one function a topic: each error is one line to act on."""

import math
import os
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers.integrations import integration_utils

from r1zero import files, processes, schedule
from r1zero.estimate import plan
from r1zero.preflight import hardware as hardware_checks
from r1zero.preflight import inputs, machine, other_machine, vllm_server
from r1zero.preflight import model as model_checks
from r1zero.report import run_folder
from r1zero.training import checkpoints, lora, reward_functions

TRACKER_PACKAGES = {"azure_ml": "azureml-core", "flyte": "flytekit"}  # whose name is another than the tracker's


def check(parser, argv):
    """What train_countdown.py trains with, once nothing is wrong: its arguments and the reward functions.

    parser: a TrlParser; argv: list[str]. Without --config, the recipe for this machine is taken. Prints the plan.
    Exits with status 1 and every error found where something is wrong, and with 0 for --dry_run.
    """
    parser.error = cannot_be_read
    other = other_machine.described(parser, argv)
    if other is not None:
        plan_for(other, parser, argv)

    # The recipe, and what it needs: a dry run works with what would be made
    recipe = machine.read_recipe(parser, argv)
    values, strategy = recipe.values, launched_strategy()
    if values.use_cpu or strategy.offload:  # DeepSpeed's AdamW is then computed on the CPU
        processes.take_threads()
    if values.dry_run:
        missing = machine.what_will_be_there(recipe)
    else:
        missing = machine.Missing()
        machine.make_missing(recipe)

    # What the run is given, and what is wrong with it, with the settings and with the machine
    functions, reward_settings = inputs.read_rewards(values)
    data, unreadable = inputs.read_data(values, missing)
    model, unavailable = inputs.read_model(values, missing)
    longest, unmeasured = inputs.longest_prompt(data, model)
    errors = [*batch_errors(values), *hardware_checks.hardware_errors(values)]
    errors += [*hardware_checks.strategy_errors(values, strategy), *lora.setting_errors(values)]
    errors += [*tracker_errors(values), *reward_settings, *unreadable, *data_errors(values, data)]
    errors += [*reward_errors(functions, data), *unavailable, *unmeasured, *model_errors(values, model, longest)]
    resumed = checkpoints.Choice()
    if processes.is_main_process():
        resumed = checkpoints.choose(values, strategy)
        errors += resumed.errors
        output = checkpoints.Choice(errors=output_errors(values, model, data.rows, strategy, resumed.checkpoint))
        if not values.dry_run and not output.errors:
            claim_output(values, output)
        errors += output.errors
        for line in [*resumed.notices, *output.notices]:
            print(line, flush=True)

    # The plan, then what is wrong
    if model is not None and processes.is_main_process():
        card = torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
        print("\n".join(model_plan(values, model, data, longest, strategy, card)), flush=True)
    if errors:
        processes.stop(f"{recipe.path} cannot run as it is", errors)
    script_args, training_args, model_args = parse(parser, recipe)
    if values.dry_run:
        sys.exit(0)
    if processes.is_main_process():  # which is the one that talks to a server
        vllm_server.await_server(values)
    training_args.resume_from_checkpoint = agreed(resumed.checkpoint)
    return script_args, training_args, model_args, functions


def cannot_be_read(message):
    """Stands for the parser's own way to tell an error, which prints the names of all 250 flags before."""
    processes.stop("a setting cannot be read", [message])


def model_plan(values, model, data, longest, strategy, card):
    """The lines of the plan (list[str]), with one more where the model (inputs.Model) is not here."""
    lines = plan.plan_lines(values, model.parameters, data.rows, longest, strategy, card)
    if model.tokenizer is None:
        lines.append(f"{values.model_name_or_path} cannot be had here: its shape is taken from r1zero/estimate")
    elif model.tokenizer.pad_token is None:
        lines.append(f"padding: the tokenizer has no pad_token, so its eos_token, {model.tokenizer.eos_token}, pads")
    return lines


def plan_for(other, parser, argv):
    """Prints the plan of a run on an other_machine.OtherMachine, and exits: with 1 where it could not run there.

    Neither the hub nor the data is needed. What only that machine can tell is not checked, and is listed.
    """
    config, flags = machine.split_config(argv)
    path = config or other.choose_recipe(use_cpu=parser.parse_known_args(flags)[0].use_cpu)
    file = other.strategy_file(path)
    with other_machine.launched(other_machine.launcher_variables(file, other.gpus)):
        recipe = machine.read_recipe(parser, argv, choose=lambda use_cpu: path)
        values, strategy = recipe.values, launched_strategy()
        missing = machine.what_will_be_there(recipe, elsewhere=True)
        missing.data = missing.data or not inputs.has_data(values)
        data, errors = inputs.read_data(values, missing)
        model, unavailable = inputs.read_model(values, missing, elsewhere=True)
        longest, unmeasured = inputs.longest_prompt(data, model)
        measured = bool(longest)
        longest = longest or other_machine.room_for_prompts(values)
        errors += [*other_machine.errors(other, values), *batch_errors(values), *lora.setting_errors(values)]
        errors += [*hardware_checks.strategy_errors(values, strategy), *data_errors(values, data)]
        errors += [*unavailable, *unmeasured, *model_errors(values, model, longest)]
    print(other.line(file))
    if model is not None:
        print("\n".join(model_plan(values, model, data, longest, strategy, other.card)))
    print(other_machine.unchecked_line(values, bool(data.files), measured, longest), flush=True)
    if errors:
        processes.stop(f"{recipe.path} cannot run there as it is", errors)
    sys.exit(0)


def parse(parser, recipe):
    """The parser's dataclasses filled from the recipe and its flags. Exits where TRL or transformers find an error."""
    try:
        return parser.parse_args_and_config(["--config", recipe.path, *recipe.flags])
    except ValueError as error:
        processes.stop(f"{recipe.path} cannot run as it is", [str(error)])


def agreed(checkpoint):
    """The path (str) of the checkpoint (Path or None) that the main process has chosen, on every process.

    Exits on a machine that does not see it.
    """
    state, chosen = PartialState(), [checkpoint and str(checkpoint)]
    if state.num_processes > 1:
        broadcast_object_list(chosen)
    if chosen[0] and not Path(chosen[0]).is_dir():
        advice = "let all machines share the folder of --output_dir, or copy the checkpoint there"
        processes.stop("the checkpoint to go on from is not here", [f"{chosen[0]} does not exist: {advice}"])
    return chosen[0]


def launched_strategy():
    """The machine.Strategy that the launcher asks for. Exits where its DeepSpeed file cannot be read."""
    try:
        return machine.read_strategy(os.environ)
    except ValueError as error:
        processes.stop("the launcher's DeepSpeed settings cannot be used", [files.one_line(error)])


def batch_errors(values):
    """Completions that do not divide into groups, and checkpoints that would stand inside a generation."""
    ranks = processes.count()
    steps = values.steps_per_generation or values.gradient_accumulation_steps
    per_device, group = values.per_device_train_batch_size, values.num_generations
    batch = values.generation_batch_size or per_device * ranks * steps
    errors = []
    if batch % group:
        unit = group // math.gcd(group, ranks * steps)
        groups = [size for size in range(2, batch + 1) if batch % size == 0]
        groups.sort(key=lambda size: abs(size - group))
        errors.append(
            f"{batch} completions a generation (per_device_train_batch_size {per_device} x {ranks} processes x "
            f"{steps} steps) do not divide into groups of num_generations {group}: set --per_device_train_batch_size "
            f"to {multiples_around(per_device, unit)}, or --num_generations to "
            f"{' or '.join(map(str, sorted(groups[:2])))}"
        )
    span = int(schedule.span(values))
    by_steps = str(values.save_strategy) == "steps" and values.save_steps >= 1
    if by_steps and span > 1 and values.save_steps % span:
        errors.append(
            f"save_steps {values.save_steps} is no multiple of the {span} optimizer steps that share one generation, "
            f"so a checkpoint would not resume exactly: set --save_steps to "
            f"{multiples_around(int(values.save_steps), span)}"
        )
    return errors


def multiples_around(number, unit):
    """The multiples of a unit below and above a number, 0 left out.

    >>> multiples_around(42, 4), multiples_around(3, 8)
    ('40 or 44', '8')
    """
    lower = number // unit * unit
    return f"{lower} or {lower + unit}" if lower else str(unit)


def tracker_errors(values):
    """Trackers of report_to that transformers does not know, or that are not there."""
    names = values.report_to or []
    if isinstance(names, str):
        names = [names]
    names = [name for name in names if name not in ("none", "all")]
    if not names:  # asking what is there imports it
        return []
    available = set(integration_utils.get_available_reporting_integrations())
    # That list leaves out azure_ml beside mlflow, and flyte always
    if integration_utils.is_azureml_available():
        available.add("azure_ml")
    if integration_utils.is_flytekit_available():
        available.add("flyte")
    errors = []
    for name in names:
        if name in available:
            continue
        if name not in integration_utils.INTEGRATION_TO_CALLBACK:
            known = ", ".join(sorted(integration_utils.INTEGRATION_TO_CALLBACK))
            errors.append(f"report_to names {name}, which is no tracker that transformers knows: it knows {known}")
            continue
        package = TRACKER_PACKAGES.get(name, name)
        errors.append(f"report_to names {name}, which is not installed or not set up: type pip install {package}")
    return errors


def data_errors(values, data):
    """Data that is too small for one generation, or for one batch of an evaluation. data: inputs.Data."""
    ranks, per_device = processes.count(), values.per_device_eval_batch_size
    prompts = schedule.schedule(values, data.rows, ranks)["prompts"]
    errors = []
    for file in data.files:
        if file.path.stem == "train" and file.rows < prompts:
            errors.append(
                f"{file.path} has {file.rows} rows, less than the {prompts} prompts of one generation, so that no "
                "step would be done: lower --gradient_accumulation_steps or --per_device_train_batch_size, or add rows"
            )
        evaluated = file.path.stem == "test" and str(values.eval_strategy) != "no"
        if evaluated and file.rows < per_device * ranks:
            errors.append(
                f"{file.path} has {file.rows} rows, less than one evaluation batch ({per_device} x {ranks} "
                f"processes): set --per_device_eval_batch_size to {max(1, file.rows // ranks)}"
            )
    return errors


def reward_errors(functions, data):
    """What the reward functions (list, None where one could not be had) cannot do with the data (inputs.Data)."""
    errors = []
    if functions is not None:
        for file in data.files:
            errors += errors_on_file(functions, file)
    return errors


def errors_on_file(functions, file):
    """Asks for the rewards of empty completions, which shows what columns and rows of an inputs.File are missed."""
    columns = {name: column for name, column in file.first.items() if name != "prompt"}
    prompts = file.first["prompt"]
    completions = [empty_completion(prompt) for prompt in prompts]
    scored, errors = [False] * len(prompts), []
    for function in functions:
        try:
            scores, _ = reward_functions.score(function, prompts, completions, columns)
        except Exception as error:  # a user's own function may raise anything
            errors.append(
                f"{file.path} has the columns {list(file.first)}, with which {function.__name__} cannot work "
                f"({type(error).__name__}: {files.one_line(error)})"
            )
            continue
        for row, score in enumerate(scores):
            scored[row] = scored[row] or score is not None
    if not errors and not all(scored):
        errors.append(unscored_error(file, scored))
    return errors


def empty_completion(prompt):
    """A completion without text, in the form in which TRL gives it for such a prompt."""
    return "" if isinstance(prompt, str) else [{"role": "assistant", "content": ""}]


def unscored_error(file, scored):
    """The error of rows that no function gives a reward. scored: list of bool, one for each row tried."""
    row = scored.index(False)
    source = "another task"
    if "data_source" in file.first:
        source = file.first["data_source"][row]
    return (
        f"{scored.count(False):,} of the first {len(scored):,} rows of {file.path} get no reward from any of "
        f"reward_funcs (row {row} is of {source}): name the function for them too"
    )


def model_errors(values, model, longest):
    """A context that is too short, and layers that LoRA does not find.

    model: inputs.Model or None; longest: tokens of the longest prompt.
    """
    if model is None:
        return []
    context = getattr(model.config.get_text_config(), "max_position_embeddings", sys.maxsize)
    where, otherwise = "the model's context", ""
    colocate = values.use_vllm and values.vllm_mode == "colocate"  # a server has its own length
    if colocate and values.vllm_max_model_length and values.vllm_max_model_length < context:
        context, where = values.vllm_max_model_length, "vllm_max_model_length"
        otherwise = ", or raise --vllm_max_model_length"
    errors = model_checks.context_errors(longest, values.max_completion_length, context, where, otherwise)
    return errors + lora.target_errors(values, model.parameters)


def claim_output(values, found):
    """Keeps other runs out of the output folder. Adds to a checkpoints.Choice why that cannot be done."""
    try:
        run_folder.claim(Path(values.output_dir or "trainer_output"))
    except ValueError as error:
        found.errors.append(str(error))
    except OSError as error:
        found.notices.append(f"{error}: see to it yourself that no second run writes there")


def output_errors(values, model, rows, strategy, resumed):
    """An output folder that cannot be written, or a disk that is too small, as a list of lines.

    model: inputs.Model, or None; rows: training problems, or None; resumed: the checkpoint to go on from, or None.
    """
    output = Path(values.output_dir or "trainer_output")
    for name in ("model_name_or_path", "data_dir"):  # of an earlier run, which is moved aside
        given = getattr(values, name)
        if given and Path(given).is_dir() and Path(given).resolve().is_relative_to(output.resolve()):
            return [
                f"{name} {given} lies in output_dir {output}, whose place this run takes: name another --output_dir"
            ]
    if Path.cwd().is_relative_to(output.resolve()):
        return [f"output_dir {output} is the folder of this command, or around it: name another with --output_dir"]
    if output.is_symlink() and not output.exists():
        return [f"output_dir {output} is a link to {os.readlink(output)}, which does not exist: make that folder"]
    existing = next(folder for folder in (output, *output.resolve().parents) if folder.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        return [f"output_dir {output} cannot be written to ({error}): name another with --output_dir"]
    if model is None:
        return []
    there = len(checkpoints.by_step(output)) if resumed else 0
    copies, needed = checkpoints.room(values, model.parameters.num_parameters(), rows, strategy, there)
    free = shutil.disk_usage(existing).free
    if free >= needed:
        return []
    return [
        f"output_dir {output} has {free / 1e6:,.0f} MB free and {copies} with the final model take "
        f"{needed / 1e6:,.0f} MB: free some, name another --output_dir, or set --save_total_limit 1 or a greater "
        "--save_steps"
    ]
