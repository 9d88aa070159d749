#!/bin/sh
# Try autointerp against a real vLLM on this machine's CPU: over HTTP and in process, with a tiny model made here.
# usage: examples/vllm/check.sh VENV [PYTHON]      (VENV is made by setup_cpu.sh where it is not there yet)
set -eu

venv=${1:?usage: check.sh VENV [PYTHON]}
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
root=$(CDPATH='' cd -- "$here/../.." && pwd)

[ -x "$venv/bin/vllm" ] || "$here/setup_cpu.sh" "$venv" ${2:+"$2"}
venv=$(CDPATH='' cd -- "$venv" && pwd)
work=$(mktemp -d)
"$venv/bin/python" "$here/make_tiny_llama.py" "$work/tiny" 2>> "$work/make.log"

port=$("$venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
"$here/serve.sh" "$venv" "$work/tiny" "$port" > "$work/server.log" 2>&1 &
server=$!
trap 'kill "$server" 2> /dev/null || true; wait "$server" 2> /dev/null || true; rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

waited=0
until "$venv/bin/python" -c "import urllib.request as r; r.urlopen('http://127.0.0.1:$port/health', timeout=2)" 2> /dev/null; do
    waited=$((waited + 1))
    if ! kill -0 "$server" 2> /dev/null || [ "$waited" -gt 150 ]; then
        tail -n 40 "$work/server.log" >&2
        echo "the server did not start" >&2
        exit 1
    fi
    sleep 2
done

cd "$root"
"$venv/bin/python" -c 'import openai, torch, transformers, vllm; print(f"vllm {vllm.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, openai {openai.__version__}")' 2>> "$work/make.log"
# VLLM_HOST_IP: the engine in the tests' own process keeps to the loopback, as all tests do
AUTOINTERP_TEST_VLLM="http://127.0.0.1:$port/v1" AUTOINTERP_TEST_VLLM_MODEL="$work/tiny" \
    VLLM_HOST_IP=127.0.0.1 VLLM_CPU_KVCACHE_SPACE=1 \
    "$venv/bin/python" -m pytest tests/integration/test_vllm.py -q -s -rA --disable-warnings --show-capture=no
