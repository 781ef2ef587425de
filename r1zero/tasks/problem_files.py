"""Read sets of problems (parquet, JSON lines, the hub), and write rows in TinyZero's schema."""

from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from r1zero.files import is_folder_name

ROWS_READ = "rows read"  # in a Counter of reasons for dropping rows, but no such reason


def chunked(items, size=1024):
    """Yield lists of `size` items of an iterable, the last one shorter."""
    items = iter(items)
    some = list(islice(items, size))
    while some:
        yield some
        some = list(islice(items, size))


def load_splits(source, configuration=None):
    """Open the splits of an existing set as streams: a parquet or json file, a folder of them, or a hub id.

    Returns {split: iterable of rows (dict)}. Raises ValueError if the set cannot be found or read.
    """
    builder = find_dataset(source, configuration)
    if hasattr(builder.config, "fragment_scan_options"):  # parquet: a buffer would keep all that was read
        from pyarrow.dataset import ParquetFragmentScanOptions

        builder.config.fragment_scan_options = ParquetFragmentScanOptions(pre_buffer=False)
        builder.config.batch_size = 1024
    try:
        return builder.as_streaming_dataset()
    except StopIteration as error:  # datasets raises it for a file without rows
        raise ValueError(f"--source {source} has no rows") from error


def find_dataset(source, configuration):
    """Return the datasets library's builder of a file, a folder or a hub id. Raises ValueError if there is none."""
    from datasets import load_dataset_builder

    path = Path(source)
    if path.is_file():
        kind = path.suffix.lstrip(".")
        if kind == "jsonl":
            kind = "json"
        if kind not in ("parquet", "json"):
            raise ValueError(f"--source {source} is no parquet, json or jsonl file: give one of these")
        return load_dataset_builder(kind, data_files=str(path))
    is_hub_id = len(path.parts) == 2 and not is_folder_name(source)
    if not path.is_dir() and not is_hub_id:
        raise ValueError(f"--source {source} does not exist; give a parquet or json file, a folder or a hub id")
    try:
        return load_dataset_builder(source, None if path.is_dir() else configuration)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"--source {source} is neither a file or folder here nor a data set that the hub gives ({error}); "
            "without network, download it elsewhere and give its path with --source"
        ) from error


def with_texts(table):
    """Return a table (Table or RecordBatch) with its prompts as texts, if each is one user message that holds a text.

    These are TinyZero's own files. Its trainer feeds the content as it is, up to <think>; TRL would take it for a chat
    and render it again. Other tables are returned as they are.
    """
    prompts = table["prompt"]
    if not pa.types.is_nested(prompts.type):
        return table
    messages = pc.list_flatten(prompts)
    texts = pc.struct_field(messages, "content")
    alone = pc.equal(pc.list_value_length(prompts), 1)
    of_user = pc.equal(pc.struct_field(messages, "role"), "user")
    rendered = pc.match_substring_regex(texts, r"<think>\s*$")
    if not all(pc.all(each, skip_nulls=False).as_py() for each in (alone, of_user, rendered)):
        return table
    return table.set_column(table.schema.get_field_index("prompt"), "prompt", texts)


def with_text_prompts(data):
    """Return a Dataset with its prompts as texts, as with_texts says."""
    table = with_texts(data.data.table)
    return data if table is data.data.table else data.remove_columns("prompt").add_column("prompt", table["prompt"])


def check_columns(source, row, wanted):
    """Raise ValueError if a row (dict) of the source lacks one of the wanted columns."""
    if not set(wanted) <= set(row):
        raise ValueError(f"--source {source} has the columns {list(row)}; wanted {' and '.join(wanted)}")


def make_example(columns, data_source, prompt, ground_truth, ability="math"):
    """Return a row (dict) in TinyZero's schema, without extra_info. columns: {name: value} that the reward reads."""
    return {
        **columns,
        "data_source": data_source,
        "prompt": prompt,
        "ability": ability,
        "reward_model": {"style": "rule", "ground_truth": ground_truth},
    }


def row_schema(columns, ground_truth=None):
    """Return the Arrow schema of rows. columns: {name: type} that the reward reads; ground_truth: a string if None."""
    ground_truth = ground_truth or pa.string()
    return pa.schema(
        {
            **columns,
            "data_source": pa.string(),
            "prompt": pa.string(),
            "ability": pa.string(),
            "reward_model": pa.struct({"style": pa.string(), "ground_truth": ground_truth}),
            "extra_info": pa.struct({"split": pa.string(), "index": pa.int64()}),
        }
    )


def write_rows(path, split, rows, schema, counts):
    """Write an iterable of a split's rows to a parquet file in chunks. Return their number and the first row.

    Raises ValueError if there is no row, with the counts of dropped ones (counts: Counter of reasons).
    """
    written, first = 0, None
    with pq.ParquetWriter(path, schema) as writer:
        for some in chunked(rows):
            if first is None:
                first = some[0]
            for row in some:
                row["extra_info"] = {"split": split, "index": written}
                written += 1
            writer.write_table(pa.Table.from_pylist(some, schema=schema))
    if not written:
        raise ValueError(f"no row is left for {split}{dropped(counts)}")
    return written, first


def dropped(counts):
    """Return the counts of dropped rows (Counter of reasons) as the end of a sentence."""
    reasons = [reason for reason, number in counts.items() if number and reason != ROWS_READ]
    return "".join(f"; dropped {counts[reason]:,} {reason}" for reason in reasons)
