set -e
cat > merge.py <<'P'
import json
import re
import sys

REFERENCE = re.compile(r"\$\{([^{}]+)\}")


def merge(old, new):
    if not (isinstance(old, dict) and isinstance(new, dict)):
        old = {}
    result = dict(old)
    for key, value in new.items():
        if key.endswith("+"):
            name = key[:-1]
            listed = result.get(name, [])
            if not isinstance(listed, list) or not isinstance(value, list):
                raise ValueError(f"{name} is no list")
            result[name] = listed + [v for i, v in enumerate(value) if v not in listed and v not in value[:i]]
        elif value is None:
            result.pop(key, None)
        elif isinstance(value, dict):
            result[key] = merge(result.get(key), value)
        else:
            result[key] = value
    return result


def resolve(value, root, on_the_way=()):
    if isinstance(value, dict):
        return {k: resolve(v, root, on_the_way) for k, v in value.items()}
    if isinstance(value, list):
        return [resolve(v, root, on_the_way) for v in value]
    match = REFERENCE.fullmatch(value) if isinstance(value, str) else None
    if not match:
        return value
    path = match[1]
    if path in on_the_way:
        raise ValueError(f"{path} leads to itself")
    found = root
    for part in path.split("."):
        if isinstance(found, str) and REFERENCE.fullmatch(found):
            found = resolve(found, root, (*on_the_way, path))
        if not isinstance(found, dict) or part not in found:
            raise ValueError(f"{path} is unknown")
        found = found[part]
    return resolve(found, root, (*on_the_way, path))


try:
    whole = {}
    for name in sys.argv[1:]:
        with open(name) as file:
            given = json.load(file)
        if not isinstance(given, dict):
            raise ValueError(f"{name} is no object")
        whole = merge(whole, given)
    text = json.dumps(resolve(whole, whole), sort_keys=True)
except (OSError, ValueError, RecursionError) as error:
    print(str(error).splitlines()[0], file=sys.stderr)
    sys.exit(2)
print(text)
P
python3 merge.py base.json staging.json local.json > effective.json
