#!/bin/sh
# Serve a model with vLLM on this machine's loopback, as autointerp wants it.
# usage: examples/vllm/serve.sh VENV MODEL PORT [more options of vllm serve]
# The name of the model is "tiny"; it runs in the foreground until it is interrupted.
set -eu

usage='usage: serve.sh VENV MODEL PORT [more options of vllm serve]'
venv=${1:?$usage}
model=${2:?$usage}
port=${3:?$usage}
shift 3

# for the CPU: room for keys and values in GiB; nothing is reported to anybody and nothing is fetched
export VLLM_CPU_KVCACHE_SPACE="${VLLM_CPU_KVCACHE_SPACE:-1}"
export VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1

# --max-logprobs 20                     what scorers ask for
# disable_any_whitespace                 a schema lets a weak model write blanks for ever; this does not
# --enable-prompt-tokens-details         says how many prompt tokens the prefix cache had, for the ledger
# --dtype float32 --enforce-eager        for a tiny model on a CPU; leave both out on a GPU
exec "$venv/bin/vllm" serve "$model" --served-model-name tiny --host 127.0.0.1 --port "$port" \
    --max-model-len 4096 --max-logprobs 20 --enable-prompt-tokens-details \
    --structured-outputs-config '{"backend": "xgrammar", "disable_any_whitespace": true}' \
    --dtype float32 --enforce-eager "$@"
