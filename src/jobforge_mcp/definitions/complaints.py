"""Say what pydantic found wrong in words that hold for JSON, whoever wrote the value and in whatever language.

Tools, files and registered definitions all use these words, so that a caller never reads of tuples, dictionaries, our
classes or a regular expression.
"""

from __future__ import annotations

from pydantic_core import ErrorDetails


def complain(problem: ErrorDetails, words: dict[str, str] | None = None) -> str | None:
    """Return what a value must be, to follow its name; ``None`` for a kind of problem that has no words here."""
    kind = problem["type"]
    template = (words or {}).get(kind) or COMPLAINTS.get(kind)
    return None if template is None else template.format(**problem.get("ctx", {}))


COMPLAINTS = {
    "too_short": "must have a member",
    "too_long": "has more than {max_length} members",
    "string_type": "must be a string",
    "string_too_short": "must not be empty",
    "string_too_long": "is longer than {max_length} characters",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "is too large",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "model_type": "must be an object",
    "model_attributes_type": "must be an object",
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "literal_error": "must be {expected}",
    "enum": "must be {expected}",
    "missing": "is required",
    "extra_forbidden": "is not known here",
    "string_pattern_mismatch": "does not have the form of one",
}
