"""The commands and their options. A script that people wrote must go on working: take nothing away, rename nothing."""

from importlib.metadata import entry_points

import click

from pipeline.cli.main import cli
from pipeline.cli.options import made_shards

FROZEN = {
    "check": "--annotations --images --workers --report --config --set",
    "chips": "--annotations --images --out --workers --engine --address --plan-only --overwrite --max-bad"
    " --max-bad-boxes --config --set",
    "negatives": "--data --images --proposals --random --workers --engine --address --overwrite --config --set",
    "import": "FORMAT --annotations --images --out --names --max-bad",
    "split": "--annotations --out --val --test --group --images --seed",
    "export": "DATA --format --out --split --kind --blank --workers --overwrite",
    "suggest": "--annotations --out --proposal --device --max-nowhere --config --set",
    "report": "FOLDER --out --detections --annotations --images",
    "show": "DATA --out --kind --image --images --class --status --columns --seed",
    "verify": "DATA --workers",
    "train": "--data --out --batch-size --epochs --precision --resume --val-annotations --val-images --allow-seen"
    " --config --set",
    "evaluate": "--checkpoint --results --annotations --images --out --table --proposals --max-dets --allow-seen"
    " --config --set",
    "detect": "--checkpoint IMAGES --out --classes --min-score --min-drawn --focus-map --results --annotations"
    " --config --set",
    "export-model": "--checkpoint --out --format --size --slim --config --set",
    "views": "--images --annotations --out --workers --overwrite --config --set",
    "merge-views": "VIEWS --results --out --annotations --max-dets --config --set",
    "settings": "--config --set",
}


def test_cli__commands_and_options_are_the_frozen_ones() -> None:
    commands = dict(cli.commands)
    commands |= {entry.name: entry.load() for entry in entry_points(group="sniper.commands")}
    assert {name: options_of(command) for name, command in commands.items()} == {
        name: set(options.split()) for name, options in FROZEN.items()
    }
    assert options_of(cli) == {"--version"}


def options_of(command: click.Command) -> set[str]:
    return {
        max(parameter.opts, key=len) if isinstance(parameter, click.Option) else str(parameter.human_readable_name)
        for parameter in command.params
    }


def test_made_shards__names_those_that_were_there_only_where_there_are_some() -> None:
    assert made_shards("out", 1, 1) == "out: made 1 shard"
    assert made_shards("out", 3, 2) == "out: made 2 shards; 1 was there already"
    assert made_shards("out", 3, 1) == "out: made 1 shard; 2 were there already"
