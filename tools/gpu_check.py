"""What only a GPU can tell, in one run of eight minutes that may be cut off: nbs/tools/gpu_check.ipynb.

    python3 tools/gpu_check.py                        # everything that is missing in nbs/results/gpu_check.jsonl
    python3 tools/gpu_check.py --only tree step       # some parts
    python3 tools/gpu_check.py --small                # in small, on a CPU, into runs/gpu_check.jsonl
    python3 tools/gpu_check.py --wheels               # the wheels to carry to a machine without a network

Runs in a checkout, installed or not. What comes first is a list of the wheels beside those of torch and transformers.
"""
import argparse
import os
import sys
from configparser import ConfigParser
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WANTED = ('requirements', 'qlora_requirements', 'bench_requirements')  # In settings.ini
GIVEN = ('torch', 'transformers')


def requirements():
    "Names of what the check needs, torch and transformers among them"
    from packaging.requirements import Requirement  # transformers brings it
    settings = ConfigParser(delimiters='=', interpolation=None)
    settings.read(ROOT/'settings.ini')
    return [Requirement(word).name for key in WANTED for word in settings['DEFAULT'][key].split()]


def closure(names, requires=metadata.requires):
    "Names, and all that these need here; what is not installed needs nothing"
    from packaging.requirements import Requirement
    seen = set()
    todo = list(names)
    while todo:
        name = todo.pop().lower().replace('_', '-')
        if name in seen:
            continue
        seen.add(name)
        try:
            needs = [Requirement(line) for line in requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        todo += [need.name for need in needs if need.marker is None or need.marker.evaluate(dict(extra=''))]
    return seen


def version(name):
    "Of an installed library; None: it is not here"
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def wheels():
    "Each library that torch and transformers do not bring, with its version here, or None"
    beside = closure(requirements()) - closure(GIVEN)
    return {name: version(name) for name in sorted(beside)}


def say_wheels():
    "Which wheels are here, and which are missing"
    found = wheels()
    present = [f'{name} {number}' for name, number in found.items() if number]
    missing = [name for name, number in found.items() if not number]
    print('wheels beside torch and transformers:', ', '.join(present) or 'none', flush=True)
    print('missing:', ', '.join(missing) or 'none', flush=True)


def parse(words):
    "The flags"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('--out', metavar='FILE', help='a row for each part; parts that went well there are not done again')
    add('--only', nargs='+', default=[], metavar='PART', help='only these parts')
    add('--minutes', type=float, default=8., help='for all parts together; default 8')
    add('--small', action='store_true', help='everything in small, on a CPU')
    add('--wheels', action='store_true', help='print the wheels to carry, NAME==VERSION, and do nothing')
    return parser.parse_args(words)


def main(words=None):
    args = parse(words)
    if args.wheels:
        print('\n'.join(f'{name}=={number}' for name, number in wheels().items() if number))
        return 0
    say_wheels()
    os.environ['HF_HUB_OFFLINE'] = '1'
    if args.small:
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    try:
        from ivgr.core import InputError
        from ivgr.tools.gpu_check import check_gpu
    except ModuleNotFoundError as error:
        print(f'{error}: carry its wheel here, with those that are missing above', file=sys.stderr)
        return 1
    out = args.out or ('runs/gpu_check.jsonl' if args.small else ROOT/'nbs/results/gpu_check.jsonl')
    try:
        went_well = check_gpu(out, args.small, args.only, args.minutes, lambda line: print(line, flush=True))
    except InputError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if went_well else 1


if __name__ == '__main__':
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
