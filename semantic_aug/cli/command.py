"""How a command speaks and ends: its parser, its notices, and errors in one line."""

import argparse
import contextlib
import difflib
import errno
import functools
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from semantic_aug import UserError, counted
from semantic_aug.cli.notices import notices
from semantic_aug.cli.scripts import SCRIPTS
from semantic_aug.experiment.interrupts import INTERRUPTED, TRY_AGAIN, Stopped, stoppable


class Parser(argparse.ArgumentParser):
    """Flags with underscores, accepted with hyphens too; one-line errors; no abbreviations.

    Args:
        intermixed: words without a flag may stand before, between and after the flags.
    """

    def __init__(self, doc: str, *, intermixed: bool = False, **kwargs):
        self.intermixed = intermixed
        kwargs.setdefault("usage", "%(prog)s --flag value ...")
        super().__init__(description=doc, allow_abbrev=False, **kwargs)
        self.add_argument("--help_all", action=_HelpAll)

    def format_help(self, whole: bool = False) -> str:
        """The help: two screens of common flags with short texts, or the `whole`."""
        formatter = _HelpFormatter(self.prog, whole)
        formatter.add_usage(self.usage, self._actions, self._mutually_exclusive_groups)
        formatter.add_text(self.description)
        left_out = 0
        for group in self._action_groups:
            shown = [each for each in group._group_actions if whole or not _is_rare(each)]
            left_out += len(group._group_actions) - len(shown)
            if any(each.help is not argparse.SUPPRESS for each in shown):
                formatter.start_section(group.title)
                formatter.add_text(group.description)
                formatter.add_arguments(sorted(shown, key=_is_rare))
                formatter.end_section()
        if left_out:
            formatter.add_text(
                f"--help_all shows {counted(left_out, 'more flag')}, and more of each."
            )
        return formatter.format_help()

    def parse_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else [str(arg) for arg in args]
        parse = super().parse_intermixed_args if self.intermixed else super().parse_args
        found = parse([_underscored(arg) for arg in args], namespace)
        for name, value in vars(found).items():
            # A shell variable that was never set gives an empty value; a prompt may be empty.
            if value == "" and "prompt" not in name:
                self.error(f"{self._as_given(name, args)} is empty: give a value, or leave the "
                           "flag out")  # fmt: skip
        return found

    def _as_given(self, name: str, args: Sequence[str]) -> str:
        """The last given flag that set this value, in its given spelling."""
        flags = [arg.partition("=")[0] for arg in args if arg.startswith("--")]
        actions = self._option_string_actions
        return [f for f in flags if (a := actions.get(_underscored(f))) and a.dest == name][-1]

    def knows(self, flag: str) -> bool:
        """Whether the parser has this flag, in either spelling."""
        return _underscored(flag).partition("=")[0] in self._option_string_actions

    def error(self, message):
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        near = unknown and difflib.get_close_matches(unknown[1], self._option_string_actions, 1)
        if near:
            message += f"; is {near[0]} meant?"
        # `semantic-aug` itself, and `semantic-aug run` for the flags of a script, keep their names.
        fixed = self.prog in ("semantic-aug", *SCRIPTS.values())
        name = self.prog if fixed else _called_as() or self.prog
        print(f"{name}: error: {message} (--help lists the flags)", file=sys.stderr)
        raise SystemExit(2)


class _HelpAll(argparse.Action):
    """Prints the whole help, and ends."""

    def __init__(self, option_strings, dest, **_):
        super().__init__(
            option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )  # fmt: skip

    def __call__(self, parser, *_):
        parser._print_message(parser.format_help(whole=True), sys.stdout)
        parser.exit()


def _is_rare(action: argparse.Action) -> bool:
    return getattr(action, "rare", False)


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Keeps the docstring's lines, and names defaults; short unless `whole`."""

    def __init__(self, prog: str, whole: bool):
        super().__init__(prog, max_help_position=30)
        self.whole = whole

    def _format_action_invocation(self, action):
        if not action.option_strings:
            return super()._format_action_invocation(action)
        flags = action.option_strings
        if not self.whole:
            flags = [flag for flag in flags if flag.startswith("--")][:1]
        return f"{', '.join(flags)} {self._format_args(action, action.dest.upper())}".rstrip()

    def _format_args(self, action, default_metavar):
        if action.nargs == "+":  # argparse writes NAME [NAME ...]
            return f"{action.metavar or default_metavar} ..."
        return super()._format_args(action, default_metavar)

    def _get_help_string(self, action):
        text = action.help or ""
        if not self.whole:
            text = re.sub(r"; .*?( \(default[^()]*\))?$", r"\1", text, count=1)
        default = action.default
        has_none = default is None or default is False or default in ((), [], argparse.SUPPRESS)
        if not has_none and action.nargs != 0 and "default" not in text:
            if isinstance(default, list | tuple):
                default = " ".join(map(str, default))
            text += f" (default {str(default).replace('%', '%%')})"
        return text


def one_of(names: Iterable[str], words: Sequence[str], prog: str, doc: str) -> str:
    """The command that the first word names.

    Raises:
        SystemExit: there is no word, no such command, or --help, which prints all commands.
    """
    parser = Parser(doc, prog=prog, usage="%(prog)s COMMAND --flag value ...")
    if not words or words[0] in ("-h", "--help", "--help_all"):
        parser.print_help()
        raise SystemExit(0 if words else 2)
    name = words[0].replace("_", "-")
    if name not in names:
        near = difflib.get_close_matches(name, names, 1)
        hint = f"is {near[0]} meant?" if near else f"there are: {', '.join(names)}"
        parser.error(f"there is no command {words[0]!r}; {hint}")
    return name


def _underscored(arg: str) -> str:
    match = re.match(r"--[a-zA-Z][\w-]*", arg)
    return "--" + match[0][2:].replace("-", "_") + arg[match.end() :] if match else arg


# Remedies for errors of the system; other errors are our bugs, and keep their traceback.
_REMEDIES = {
    errno.ENOSPC: "make room and run the same command again",
    errno.EDQUOT: "make room and run the same command again",
    errno.EACCES: "choose a place that you may write to, such as another --output_dir",
    errno.EPERM: "choose a place that you may write to, such as another --output_dir",
    errno.EROFS: "choose a place that can be written to, such as another --output_dir",
    errno.ENOTDIR: "a file lies where a folder is needed",
    errno.EEXIST: "a file lies where a folder is needed",
    errno.EISDIR: "a folder lies where a file is needed",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "a link leads to itself",
}


def command(main):
    """Turn UserError into a line on stderr and exit status 2, and show notices on stderr.

    Where a scheduler asks a command to end (see `experiment.interrupts`), the status is 75.
    """

    @functools.wraps(main)
    def wrapper(argv=None):
        with notices(), contextlib.suppress(BrokenPipeError):
            try:
                with stoppable():
                    return main(argv)
            except Stopped as stopped:
                print(f"ended by {stopped}; the same command goes on from here", file=sys.stderr)
                raise SystemExit(TRY_AGAIN) from None
            except UserError as error:
                line = " ".join(str(error).split())
            except KeyboardInterrupt:
                print(INTERRUPTED, file=sys.stderr)
                raise SystemExit(130) from None
            except OSError as error:
                if error.errno not in _REMEDIES:
                    raise
                where = error.filename or "the output folder"
                line = f"{where}: {error.strerror}; {_REMEDIES[error.errno]}"
            name = _called_as() or _name_of(sys.modules[main.__module__])
            print(f"{name}: error: {line}", file=sys.stderr)
            raise SystemExit(2)

    return wrapper


def _called_as() -> str | None:
    """`semantic-aug COMMAND`, if this process was called so; see `__main__`."""
    name = Path(sys.argv[0]).name
    return name if name.startswith("semantic-aug ") else None


def _name_of(module) -> str:
    """The name of a command: its PROG, the script's file name, or the package of `python -m`."""
    name = Path(module.__file__).name
    return getattr(module, "PROG", module.__package__ if name == "__main__.py" else name)
