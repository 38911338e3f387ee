"""Reading label files: text of any encoding, JSON, YAML and XML; and words that mean yes or no."""

from __future__ import annotations

import codecs
import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from acclimate.data.formats.looked import current
from acclimate.errors import AcclimateError

if TYPE_CHECKING:
    from acclimate.data.formats.raw import Raw

T = TypeVar("T")

_YES = frozenset({"true", "yes", "y", "t", "on"})
_NO = frozenset(
    {
        "",
        "false",
        "no",
        "n",
        "f",
        "off",
        "none",
        "null",
        "nan",
        "nil",
        "unspecified",
        "unknown",
        "undefined",
        "n/a",
        "-",
    }
)


_DECLARED = re.compile(rb"""\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.-]+)["'][^>]*\?>""")
_MULTI_BYTE = frozenset(
    {b"gb2312", b"gbk", b"gb18030", b"big5", b"shift_jis", b"euc-jp", b"euc-kr", b"cp932", b"cp949", b"cp936"}
)


def flag(value: Any) -> bool | None:
    """Whether a flag of a label file (`difficult`, `iscrowd`, `IsGroupOf`) is set, however it is written.

    Numbers above zero are yes; zero, -1 ("not known", as in Open Images), nothing and "Unspecified" are no.

    Returns:
        None where the value is a word that is neither.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    if isinstance(value, str):
        word = value.strip().casefold()
        if word in _YES or word in _NO:
            return word in _YES
        try:
            value = float(word)
        except ValueError:
            return None
    return value > 0 if isinstance(value, int | float) else None


def size(height: Any, width: Any) -> tuple[int, int] | None:
    """(height, width) as a label file has them, as numbers or texts; None where it says none, or something else."""
    if type(height) is int and type(width) is int:
        return (height, width) if height > 0 and width > 0 else None
    try:
        rows, columns = int(float(height)), int(float(width))
    except (TypeError, ValueError, OverflowError):
        return None
    return (rows, columns) if rows > 0 and columns > 0 else None


def text(file: Path, names: bool = False) -> str | None:
    """The text of a file, or None where it is missing.

    Bytes that are not UTF-8 are replaced; in a text of file `names` they stay what the file system has.
    """
    try:
        content = current().content(file)
    except OSError:
        return None
    encoding = "utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    return content.decode(encoding, errors="surrogateescape" if names and encoding == "utf-8-sig" else "replace")


def lines(content: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, stripped, with their numbers from 1."""
    for number, line in enumerate(content.splitlines(), 1):
        if stripped := line.strip():
            yield number, stripped


def first_line(file: Path) -> str:
    """The first line of a text file, of which no more is read; empty where it is missing."""
    try:
        content = current().mapped(file)
    except (OSError, ValueError):
        return ""
    end = content.find(b"\n")
    return content[: min(end if end >= 0 else len(content), 1 << 16)].decode("utf-8-sig", errors="replace")


def numbers(words: list[str]) -> list[float] | None:
    """The words as numbers, or None where one is no number."""
    try:
        return [float(word) for word in words]
    except ValueError:
        return None


def points(value: Any) -> NDArray[np.float64] | None:
    """Points (N, 2) of a JSON file's list of pairs, or of x and y in turn; None where it is neither."""
    try:
        found = np.array(value, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    if found.ndim == 1 and len(found) % 2 == 0:
        return found.reshape(-1, 2)
    return found if found.ndim == 2 and found.shape[1] == 2 else None


def finite(word: str) -> bool:
    """Whether a word is a finite number."""
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def mentions(file: Path, *words: bytes) -> bool:
    """Whether all `words` are in a file. A large one is mapped, not read."""
    try:
        content = current().mapped(file)
        encoding = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}.get(content[:2])
        return all(content.find(word.decode().encode(encoding) if encoding else word) >= 0 for word in words)
    except (OSError, ValueError):
        return False


def json_of(file: Path, hook: Callable[[dict[str, Any]], Any] | None = None) -> Any:
    """What a JSON file holds; `hook` sees every object as soon as it is parsed and may hand back less.

    Raises:
        AcclimateError: it cannot be read or is damaged.
    """
    try:
        content = current().content(file)
        decoded = content.decode(json.detect_encoding(content), "surrogatepass")
        del content
        return json.loads(decoded.removeprefix("\ufeff"), object_hook=hook)
    except OSError as error:
        raise AcclimateError(f"{file}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise AcclimateError(f"{file}: damaged JSON ({error}); copy the file again") from None


def of_image(raw: Raw, file: Path, take: Callable[[Any], T], lacks: str) -> T | None:
    """What `take` makes of the JSON file of one image.

    Args:
        raw: hears of the image that is left out.
        file: the file.
        take: raises AttributeError, TypeError, KeyError, ValueError or OverflowError where the file is of another kind.
        lacks: what it then lacks.

    Returns:
        None where the image is left out.
    """
    try:
        return take(json_of(file))
    except AcclimateError:
        raw.problem(file, "damaged JSON; the image is left out")
    except (AttributeError, TypeError, KeyError, ValueError, OverflowError):
        raw.problem(file, f"no {lacks}; the image is left out")
    return None


def yaml_of(file: Path) -> Any:
    """What a YAML file holds, every scalar as the text it is written as: `on`, `050` and `~` may be names.

    Raises:
        AcclimateError: it cannot be read or is damaged.
    """
    from acclimate.data import safe_yaml

    try:
        return safe_yaml.load(current().content(file))
    except OSError as error:
        raise AcclimateError(f"{file}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise AcclimateError(f"{file}: damaged YAML ({error})") from None


def xml_of(file: Path) -> ElementTree.Element:
    """The root of an XML file, its names without their namespaces.

    Raises:
        FileNotFoundError: it is not there.
        AcclimateError: it cannot be read or parsed.
    """
    try:
        content = current().content(file)
        declared = _DECLARED.match(content)
        if declared and declared[1].lower() in _MULTI_BYTE:
            # The parser knows none of these; Windows tools of East Asia write them.
            root = ElementTree.fromstring(content[declared.end() :].decode(declared[1].decode()))
        else:
            root = ElementTree.fromstring(content.lstrip())
        for node in root.iter() if b"xmlns" in content else ():
            node.tag = node.tag.rpartition("}")[2]
        return root
    except FileNotFoundError:
        raise
    # An encoding that Python does not know is a LookupError.
    except (ElementTree.ParseError, OSError, LookupError, ValueError, RecursionError) as error:
        raise AcclimateError(f"{file}: not readable XML ({error})") from None
