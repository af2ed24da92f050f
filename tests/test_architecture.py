"""The house rules that a machine can read: who may import whom, what importing may do, sizes."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src" / "samadapt"

#: A room is a module or a sub-package. Each may import `types` and itself, and what stands here.
ROOMS: dict[str, set[str]] = {
    "records": set(),
    "types": set(),
    "io": {"files"},
    "transforms": set(),
    "losses": set(),
    "statistics": set(),
    "files": set(),
    "ahead": set(),
    "progress": set(),
    "names": {"overlap"},
    "options": set(),
    "settings": {"names", "options"},
    "metrics": {"files", "statistics"},
    "runs": {"files", "settings", "weights"},
    "figures": {"files"},
    "report": {"files", "metrics", "overlap", "statistics"},
    "weights": {"files"},
    "overlap": set(),
    "backbones": {"weights"},
    "opening": {"io"},
    "datasets": {"files", "io", "opening"},
    "check": {"datasets", "figures", "files", "io", "overlap", "transforms"},
    "phantom": {"files", "io"},
    "postprocessing": {"files", "metrics"},
    "course": set(),
    "scoring": {"metrics"},
    "flips": {"prediction", "transforms"},
    "calibration": {"files", "runs"},
    "ensemble": {"datasets", "files", "flips", "inputs", "prediction", "runs"},
    "pictures": {"course", "figures", "prediction", "transforms"},
    "finishing": {
        "calibration",
        "course",
        "datasets",
        "pictures",
        "postprocessing",
        "prediction",
        "settings",
    },
    "folds": {
        "datasets",
        "evaluation",
        "features",
        "files",
        "finishing",
        "folders",
        "inputs",
        "learner",
        "metrics",
        "predicted",
        "settings",
    },
    "info": {
        "calibration",
        "course",
        "datasets",
        "encoders",
        "files",
        "heads",
        "metrics",
        "overlap",
        "postprocessing",
        "predicted",
        "runs",
        "weights",
    },
    "views": {"transforms"},
    "encoders": {"backbones", "transforms", "views", "weights"},
    "heads": {"options", "losses", "backbones", "transforms"},
    "adapted": {"encoders"},
    "tuning": {"encoders", "runs"},
    "features": {"ahead", "encoders", "files", "progress", "transforms", "views"},
    "training": {
        "adapted",
        "features",
        "losses",
        "settings",
        "files",
        "metrics",
        "progress",
        "runs",
        "transforms",
        "tuning",
    },
    "simclr": {"adapted", "settings", "files", "training", "transforms", "heads", "runs", "views"},
    "baselines": {
        "settings",
        "files",
        "datasets",
        "encoders",
        "io",
        "heads",
        "runs",
        "transforms",
        "weights",
    },
    "prediction": {
        "calibration",
        "adapted",
        "ahead",
        "io",
        "opening",
        "transforms",
        "encoders",
        "heads",
        "postprocessing",
        "runs",
        "tuning",
        "views",
    },
    "predicted": {"files", "opening", "runs"},
    "inputs": {"files", "names", "datasets", "io", "opening", "predicted", "runs"},
    "learner": {
        "adapted",
        "settings",
        "files",
        "datasets",
        "encoders",
        "heads",
        "features",
        "overlap",
        "training",
        "tuning",
        "runs",
        "weights",
        "unlabelled",
    },
    "unlabelled": {"datasets", "files", "inputs", "opening"},
    "answering": {
        "calibration",
        "ensemble",
        "figures",
        "flips",
        "inputs",
        "io",
        "names",
        "opening",
        "pictures",
        "postprocessing",
        "prediction",
        "runs",
        "settings",
    },
    "folders": {
        "answering",
        "ensemble",
        "files",
        "inputs",
        "opening",
        "overlap",
        "postprocessing",
        "predicted",
        "prediction",
        "runs",
        "settings",
    },
    "serving": {
        "answering",
        "ensemble",
        "figures",
        "files",
        "folders",
        "inputs",
        "io",
        "opening",
        "options",
        "prediction",
        "runs",
    },
    "evaluation": {
        "calibration",
        "ensemble",
        "files",
        "datasets",
        "inputs",
        "io",
        "metrics",
        "overlap",
        "pictures",
        "predicted",
        "scoring",
        "runs",
    },
    "experiment": {
        "unlabelled",
        "options",
        "settings",
        "files",
        "datasets",
        "encoders",
        "heads",
        "features",
        "training",
        "simclr",
        "baselines",
        "prediction",
        "learner",
        "metrics",
        "overlap",
        "progress",
        "runs",
        "transforms",
        "tuning",
        "figures",
        "scoring",
    },
    "export": {
        "adapted",
        "encoders",
        "files",
        "info",
        "inputs",
        "io",
        "opening",
        "overlap",
        "postprocessing",
        "prediction",
        "runs",
        "settings",
        "transforms",
        "tuning",
        "weights",
    },
    "suggest": {
        "datasets",
        "encoders",
        "ensemble",
        "experiment",
        "features",
        "files",
        "inputs",
        "io",
        "learner",
        "metrics",
        "opening",
        "prediction",
        "runs",
        "settings",
        "statistics",
        "tuning",
    },
    "cluster": {
        "answering",
        "datasets",
        "encoders",
        "experiment",
        "features",
        "files",
        "inputs",
        "runs",
    },
    "demo": {
        "encoders",
        "heads",
        "files",
        "datasets",
        "evaluation",
        "features",
        "figures",
        "folders",
        "io",
        "learner",
        "metrics",
        "phantom",
        "training",
    },
}
#: They may import everything; nobody imports them.
DOORS = {"cli", "__init__", "__main__"}

#: Modules that look at the end of a file's name, though not at an image's: weights and tables.
OWN_SUFFIXES = {"weights.py", "checkpoints.py", "csvs.py"}

#: Leave the project, with exported models and to clients of a server, alone and without samadapt: each is one file that has
#: its own way to write, and the runner its own list of formats (decisions 028, 033).
SHIPPED = {"runner.py", "client.py"}

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
MAX_PARAMETERS = 7


# ---------------------------------------------------------------- readers


def sources(root: Path) -> Iterator[tuple[Path, str, ast.Module]]:
    """(file, room, syntax tree) of every module."""
    for path in sorted(root.rglob("*.py")):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        yield path, room, ast.parse(path.read_text())


def own_imports(node: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, room) of every import of the own package, also inside functions and `if TYPE_CHECKING`."""
    for found in ast.walk(node):
        if isinstance(found, ast.Import):
            for alias in found.names:
                if alias.name.split(".")[0] == "samadapt":
                    yield found.lineno, (*alias.name.split("."), "__init__")[1]
        elif isinstance(found, ast.ImportFrom) and found.level:
            yield found.lineno, "a relative import"
        elif isinstance(found, ast.ImportFrom) and (found.module or "").split(".")[0] == "samadapt":
            parts = (found.module or "").split(".")
            for alias in found.names:
                yield found.lineno, parts[1] if len(parts) > 1 else alias.name


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


# ---------------------------------------------------------------- rules: each gives its violations


def forbidden_imports(root: Path) -> list[str]:
    found = []
    for path, room, tree in sources(root):
        if room in DOORS:
            continue
        if room not in ROOMS:
            found.append(f"{path.name}: room {room!r} is not in the allow-list")
            continue
        allowed = ROOMS[room] | {"records", "types", room}
        found += [
            f"{path.name}:{n}: {room} may not import {other}"
            for n, other in own_imports(tree)
            if other not in allowed
        ]
    return found


def hidden_imports(root: Path) -> list[str]:
    """Own modules imported inside functions hide cycles. Third-party extras may wait; so may all in cli.py."""
    return [
        f"{path.name}:{n}: {function.name} imports {other} inside"
        for path, room, tree in sources(root)
        if room != "cli"
        for function in functions(tree)
        for n, other in own_imports(function)
    ]


def duck_sniffing(root: Path) -> list[str]:
    return [
        f"{path.name}:{node.lineno}: hasattr"
        for path, _, tree in sources(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "hasattr"
    ]


def busy_imports(root: Path) -> list[str]:
    """A bare call at the top of a module acts when it is imported: logging, folders, devices, downloads."""
    return [
        f"{path.name}:{node.lineno}: importing calls {ast.unparse(node.value.func)}"
        for path, _, tree in sources(root)
        for node in tree.body
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ]


#: Calls that write a file, or rename one; a path among their arguments may only be one that `files.replacing` gave.
WRITERS = {
    *("open_memmap", "save", "save_file", "savefig", "savez", "savez_compressed", "tofile", "to_filename"),
    *("to_csv", "write_bytes", "write_text", "imwrite", "copy", "copy2", "copyfile", "copytree", "move"),
}


def own_writers(root: Path) -> list[str]:
    """Files are written through `files` alone: a temporary name, then renamed."""
    found = []
    for path, room, tree in sources(root):
        if room != "files" and path.name not in SHIPPED:
            found += [
                f"{path.name}:{call.lineno}: {ast.unparse(call)}" for call in writing(tree, frozenset())
            ]
    return found


def writing(node: ast.AST, temporary: frozenset[str]) -> Iterator[ast.Call]:
    """Calls that write elsewhere than to a temporary path, whose names are known by the blocks around them."""
    if isinstance(node, ast.With):
        given = [
            i
            for i in node.items
            if ast.unparse(i.context_expr).startswith(("replacing(", "files.replacing("))
        ]
        temporary |= {ast.unparse(item.optional_vars) for item in given if item.optional_vars}
    if isinstance(node, ast.Call):
        used = {n.id for part in (*node.args, node.func) for n in ast.walk(part) if isinstance(n, ast.Name)}
        if is_writer(node) and not used & temporary:
            yield node
    for child in ast.iter_child_nodes(node):
        yield from writing(child, temporary)


def is_writer(call: ast.Call) -> bool:
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
    if name == "open":
        given = [*call.args[0 if owner else 1 :], *(k.value for k in call.keywords if k.arg == "mode")]
        modes = [str(a.value) for a in given if isinstance(a, ast.Constant)]
        return any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)
    if name in (
        "replace",
        "rename",
    ):  # of a path: one argument; of a text, a dataclass or a network: more, or not `os`
        return owner == "os" or (name == "replace" and len(call.args) == 1 and not call.keywords)
    if owner.startswith("Path('/proc"):  # a switch of the kernel and not a file
        return False
    ours = name in ("write_bytes", "write_text") and owner in ("", "files")
    return name in WRITERS and not ours and not (name == "copy" and owner != "shutil")


def suffix_tests(root: Path) -> list[str]:
    """What a file's name says of its format is asked of `io.FORMATS`."""
    return [
        f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        for path, room, tree in sources(root)
        if room != "io" and path.name not in OWN_SUFFIXES | SHIPPED
        for node in ast.walk(tree)
        if (isinstance(node, ast.Attribute) and node.attr in ("suffix", "suffixes"))
        or (isinstance(node, ast.Compare | ast.Call) and looks_at_suffix(node))
    ]


def looks_at_suffix(node: ast.Compare | ast.Call) -> bool:
    if isinstance(node, ast.Compare):
        parts = [node.left, *node.comparators]
    else:
        asked = isinstance(node.func, ast.Attribute) and node.func.attr in (
            "endswith",
            "removesuffix",
            "match",
        )
        parts = node.args if asked else []
    parts = [p for part in parts for p in getattr(part, "elts", [part])]
    texts = [part.value for part in parts if isinstance(part, ast.Constant)]
    return any(isinstance(text, str) and re.fullmatch(r"\*?(\.[a-z]\w*)(\.gz)?", text) for text in texts)


def oversized(root: Path) -> list[str]:
    found = []
    for path, _, tree in sources(root):
        lines = len(path.read_text().splitlines())
        if lines > MAX_FILE_LINES and path.name not in SHIPPED:
            found.append(f"{path.name}: {lines} lines, at most {MAX_FILE_LINES}")
        for function in functions(tree):
            length = (function.end_lineno or function.lineno) - function.lineno + 1
            if length > MAX_FUNCTION_LINES:
                found.append(f"{path.name}:{function.name}: {length} lines, at most {MAX_FUNCTION_LINES}")
            arguments = [x.arg for x in (*function.args.posonlyargs, *function.args.args)]
            own = [name for name in arguments if name not in ("self", "cls")]
            if len(own) > MAX_PARAMETERS and not _declares_options(path, function):
                found.append(f"{path.name}:{function.name}: {len(own)} parameters, at most {MAX_PARAMETERS}")
    return found


def _declares_options(path: Path, function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Constructors of heads and commands: their parameters are a list of what a user can set."""
    parts = path.relative_to(SRC).parts if path.is_relative_to(SRC) else path.parts
    return parts[0] == "cli" or (parts[0] in ("heads", "backbones") and function.name == "__init__")


def named_behaviour(root: Path) -> list[str]:
    """No comparison with the name of a tuning or of a study's method outside the table that has it."""
    from samadapt.experiment.registry import METHODS
    from samadapt.tuning import TUNINGS

    names = {name for table in METHODS.values() for name in table} - {
        "random"
    }  # that is also a word for weights
    found = []
    for path, room, tree in sources(root):
        for node in ast.walk(tree):
            if not isinstance(node, ast.Compare):
                continue
            words = {
                x.value for x in ast.walk(node) if isinstance(x, ast.Constant) and isinstance(x.value, str)
            }
            about = ast.unparse(node)
            if (words & names and room != "names") or (words & set(TUNINGS) and "tun" in about):
                found.append(f"{path.name}:{node.lineno}: {about}")
    return found


RULES = [
    forbidden_imports,
    hidden_imports,
    duck_sniffing,
    busy_imports,
    oversized,
    own_writers,
    suffix_tests,
    named_behaviour,
]


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_the_rule(rule):
    assert rule(SRC) == []


@pytest.mark.parametrize(
    ("rule", "file", "text"),
    [
        (forbidden_imports, "training/loop.py", "from samadapt.encoders import load_encoder"),
        (forbidden_imports, "training/loop.py", "from samadapt import encoders"),
        (forbidden_imports, "training/loop.py", "import samadapt.encoders.sam"),
        (forbidden_imports, "training/loop.py", "import samadapt"),
        (forbidden_imports, "training/loop.py", "def f():\n    from samadapt.encoders import load_encoder"),
        (forbidden_imports, "heads/unet.py", "from samadapt.encoders.sam import Sam"),
        (forbidden_imports, "heads/unet.py", "from . import linear"),
        (forbidden_imports, "report.py", "from samadapt.experiment import Grid"),
        (forbidden_imports, "utils.py", ""),
        (hidden_imports, "folders.py", "def f():\n    from samadapt.io import read_case"),
        (duck_sniffing, "heads/unet.py", "x = hasattr(object, 'y')"),
        (busy_imports, "features.py", "import logging\nlogging.basicConfig()"),
        (own_writers, "folders.py", "open(p, 'w')"),
        (own_writers, "folders.py", "p.open(mode='ab')"),
        (own_writers, "folders.py", "gzip.open(p, 'wb')"),
        (own_writers, "folders.py", "p.write_text('x')"),
        (own_writers, "folders.py", "np.savez(p, a=1)"),
        (own_writers, "folders.py", "np.lib.format.open_memmap(p, mode='w+')"),
        (own_writers, "folders.py", "with replacing(p) as t:\n    image.save(p)"),
        (own_writers, "folders.py", "with replacing(p) as t:\n    pass\nfigure.savefig(t)"),
        (own_writers, "folders.py", "os.replace(a, b)"),
        (own_writers, "folders.py", "draft.replace(path)"),
        (suffix_tests, "folders.py", "if path.suffix.lower() in KNOWN:\n    pass"),
        (suffix_tests, "folders.py", "path.name.endswith('.nii.gz')"),
        (suffix_tests, "folders.py", "name.endswith(('.png', '.jpg'))"),
        (suffix_tests, "folders.py", "ending == '.nii'"),
        (suffix_tests, "folders.py", "path.match('*.png')"),
        (named_behaviour, "folders.py", "if config.tune == 'all':\n    pass"),
        (named_behaviour, "folders.py", "x = [n for n in learners if n in ('zero_shot', 'other')]"),
        (oversized, "io/nifti.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
        (oversized, "io/nifti.py", "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
    ],
)
def test_the_rule_sees_an_offender(tmp_path, rule, file, text):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text(text)
    assert len(rule(tmp_path)) == 1


def test_a_temporary_path_may_be_written_to(tmp_path):
    (tmp_path / "folders.py").write_text(
        "with files.replacing(p) as t, open(t, 'w') as file:\n    image.save(t)\n"
        "open(p)\np.open('rb')\ntext.replace('a', 'b')\nreplace(case, id='x')\narray.copy()"
    )
    assert own_writers(tmp_path) == []


def test_the_allow_list_has_no_cycle_and_no_unknown_room():
    rooms = {room: allowed - {room} for room, allowed in ROOMS.items()}
    assert set().union(*rooms.values()) <= set(rooms)
    list(graphlib.TopologicalSorter(rooms).static_order())  # raises CycleError


# ---------------------------------------------------------------- importing costs nothing

HEAVY = ("torch", "numpy", "transformers", "monai", "lightning", "scipy", "sklearn", "matplotlib")


def test_metrics_and_report_need_no_torch():
    """A report is made from scores alone, in seconds, where torch may not be installed."""
    rooms = ["records", "files", "statistics", "metrics", "overlap", "report"]
    assert set(rooms) <= {room for _, room, _ in sources(SRC)}
    assert "torch" not in loaded_by("\n".join(f"import samadapt.{name}" for name in rooms))


def loaded_by(code: str) -> set[str]:
    """Which of the heavy packages a fresh interpreter has loaded after this code."""
    program = f"import sys\n{code}\nprint('loaded', *[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split()[1:])


def test_the_probe_sees_what_is_loaded():
    assert "numpy" in loaded_by("import numpy")


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_by("import samadapt, samadapt.cli") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = f"""
from samadapt.cli import main
sys.argv = ['samadapt', *{arguments!r}]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
"""
    assert loaded_by(code) == set()
