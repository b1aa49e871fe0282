"""What must never be recorded: passwords, tokens and keys, told by their names and by their forms.

Applied where something is said, in the training process, so that not even the spool holds them. What is replaced is
``[redacted]``; numbers are never secrets.
"""

from __future__ import annotations

import re

REDACTED = "[redacted]"

_NAMES = (
    r"pass(?:word|wd|phrase)?|pwd|secret|credentials?|(?:auth|access|api|bearer|refresh|session|id|personal)?_?token|"
    r"(?:api|access|private|secret|storage|account|signing|encryption|ssh|auth|shared|client|hmac|master)_?(?:key|secret)|"
    r"(?:aws_)?secret_access_key|sas|signature"
)
#: A parameter's name, its last part after dots and double underscores; words may be joined: ``dbPassword``.
_PARAM = re.compile(
    rf"(?:^|[_.\-])(?:{_NAMES}|key)$|password|passwd|passphrase|secret|credential|api_?key|access_?key",
    re.IGNORECASE,
)
#: ``scheme://user:password@`` and ``scheme://token@``.
_USERINFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.\-]*://)[^\s/?#@'\"]+@", re.IGNORECASE)
#: ``password=...``, ``;Password=...``, ``"token": "..."`` in options, queries, JSON and the text of dictionaries.
_OPTION = re.compile(
    rf"(?P<name>(?<![a-z0-9_])(?:[a-z0-9]+[_.\-])*(?:{_NAMES})['\"]?\s*[=:]\s*)(?P<quote>['\"]?)"
    r"(?!\[redacted\]|None\b|True\b|False\b|[\d.]+\b)(?P<value>[^'\"\s&;,)}\]]+)",
    re.IGNORECASE,
)
#: Forms that say what they are: of AWS, GitHub, GitLab, Databricks, Slack, OpenAI, Hugging Face, JWT, and after Bearer.
_FORMS = re.compile(
    r"\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{30,}\b|\bglpat-[\w\-]{20,}|\bdapi[0-9a-f]{32}\b|"
    r"\bxox[abprs]-[\w\-]{10,}|\bsk-[\w\-]{20,}|\bhf_[A-Za-z0-9]{30,}\b|"
    r"\beyJ[\w\-]{10,}\.[\w\-]{10,}\.[\w\-]*|(?<=Bearer )[\w\-.=+/]{8,}"
)
_HINTS = ("://", "pass", "pwd", "secret", "credential", "token", "key", "sas", "signature", "AKIA", "gh", "glpat")
_MORE = ("dapi", "xox", "sk-", "hf_", "eyJ", "Bearer")


def is_secret(name: str) -> bool:
    """Return whether a parameter of this name holds a secret."""
    return _PARAM.search(name.rpartition("__")[2]) is not None


def value(name: str, text: str) -> str:
    """Return the text of the value of a parameter or tag, without secrets."""
    if text not in ("None", "") and is_secret(name) and not _is_number(text):
        return REDACTED
    return clean(text)


def clean(text: str) -> str:
    """Return `text` without the secrets in it."""
    lower = text.lower()
    # Most texts hold none, and looking for words is many times faster than for patterns.
    if not any(hint in lower for hint in _HINTS) and not any(form in text for form in _MORE):
        return text
    text = _USERINFO.sub(rf"\g<scheme>{REDACTED}@", text)
    text = _OPTION.sub(rf"\g<name>\g<quote>{REDACTED}", text)
    return _FORMS.sub(REDACTED, text)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return text in ("True", "False")
    return True
