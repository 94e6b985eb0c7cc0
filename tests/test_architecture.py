"""Who may import what. Kept true on the syntax tree, so that imports inside functions count too."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "torchvision", "opacus", "flwr", "sklearn", "ray", "PIL", "pyarrow", "flwr_datasets", "datasets",
         "onnxruntime", "starlette", "uvicorn", "httpx"}  # fmt: skip
ALLOWED = {
    "fedkd/flower/control.py": {"flwr", "httpx"},
    "fedkd/learner/torch_learner.py": {"torch"},
    "fedkd/learner/private_torch.py": {"torch", "opacus"},
    "fedkd/learner/hint.py": {"torch"},
    "fedkd/learner/models.py": {"torch", "torchvision"},
    "fedkd/learner/sklearn_learner.py": {"sklearn"},
    "fedkd/learner/onnx_learner.py": {"onnxruntime"},
    "fedkd/dataset.py": {"PIL", "pyarrow", "flwr_datasets", "datasets", "torchvision"},
    "fedkd/data_files.py": {"PIL", "pyarrow", "flwr_datasets", "datasets", "torchvision"},
}
FOLDERS = {"fedkd/flower/": {"flwr"}, "fedkd/serving/": {"starlette", "uvicorn", "httpx"}}
FORBIDDEN = {
    "fedkd": {"server", "clients", "simulations", "tests"},
    "server": {"clients", "simulations", "tests"},
    "clients": {"server", "simulations", "tests"},
    "simulations": {"tests"},
}
NEVER = {"pickle", "cloudpickle", "dill", "shelve", "marshal", "joblib"}
# From the foundation up: a module imports its own layer or a lower one.
LAYERS = [
    {"errors", "random", "events", "softlabels", "clock", "units", "tell", "logs", "__init__"},
    {"registry", "records", "files", "locks", "memory", "range_coder", "frames", "symbols"},
    {"aggregation", "teacher", "release", "codec", "audience", "metrics", "expertise", "feedback", "dataset",
     "data_files", "transfer", "partition", "labeled", "select", "losses", "learner", "journal", "recording", "augment",
     "schedule", "lesson", "attack", "defense", "evidence", "features", "privacy", "protect", "secagg", "absence"},
    {"parts", "federation"},
    {"config", "state", "report"},
    {"client", "site", "envelope", "collect", "masked_round", "rounds", "rundir", "reference", "status", "figures"},
    {"scoreboard", "screen", "student", "doctor", "preflight", "stored", "replay", "sweep", "audits", "metrics_page",
     "publish"},
    {"flower", "fleet"},
    {"serving"},
    {"engine", "fedavg", "plan", "bench_device", "trial_round"},
    {"execution"},
    {"commands", "__main__"},
]  # fmt: skip
FILES = sorted(p for top in FORBIDDEN for p in (ROOT / top).rglob("*.py"))


def imports(path):
    """Yield (module, only for type checkers) for each import in a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.dump(branch.test)
        for node in ast.walk(branch)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) in typing_only
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                deep = f"{node.module}.{alias.name}"
                is_module = (ROOT / (deep.replace(".", "/") + ".py")).exists()
                yield (deep if is_module else str(node.module)), id(node) in typing_only


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_only_what_its_place_allows(path):
    name = str(path.relative_to(ROOT))
    top = name.split("/")[0]
    for module, typing_only in imports(path):
        root = module.split(".")[0]
        assert root not in NEVER, f"{name} imports {root}: nothing is ever unpickled"
        assert root not in FORBIDDEN[top], f"{name} imports {module}"
        if root in HEAVY and not typing_only and top == "fedkd":
            folder = next((folder for folder in FOLDERS if name.startswith(folder)), "")
            allowed = FOLDERS.get(folder, set()) | ALLOWED.get(name, set())
            assert root in allowed, f"{name} imports {module}"


def layer_of(module):
    parts = module.split(".")
    part = parts[1] if len(parts) > 1 else "__init__"
    found = [i for i, layer in enumerate(LAYERS) if part in layer]
    assert len(found) == 1, f"fedkd.{part} has no layer: give it one in this test and in ARCHITECTURE.md"
    return found[0]


@pytest.mark.parametrize("path", [p for p in FILES if p.is_relative_to(ROOT / "fedkd")], ids=lambda p: p.name)
def test_within_fedkd_imports_point_down(path):
    own = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    if own == "fedkd.__init__":
        return
    for module, typing_only in imports(path):
        if module.split(".")[0] == "fedkd" and not typing_only:
            assert layer_of(module) <= layer_of(own), f"{own} imports {module}, a higher layer"


@pytest.mark.parametrize(
    "statement",
    [
        "import fedkd.commands.main",
        "import fedkd.config; fedkd.config.resolve(sets=['rounds=5'])",
        "import fedkd.report, fedkd.report.compare",
        "import fedkd.rounds, fedkd.client, fedkd.codec",
        "import fedkd.fleet.resident, fedkd.commands.join",
    ],
)
def test_the_light_half_never_loads_a_framework(statement):
    heavy = "{'torch', 'flwr', 'opacus', 'sklearn', 'torchvision', 'starlette', 'httpx'}"
    code = f"{statement}\nimport sys; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_help_never_loads_a_framework():
    code = (
        "import sys\nsys.argv=['fedkd','--help']\nfrom fedkd.commands.main import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "print('LOADED', sorted({'torch','flwr','opacus','sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert "LOADED []" in done.stdout
    assert "compare" in done.stdout
