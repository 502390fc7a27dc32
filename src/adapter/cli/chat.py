"""A conversation in the terminal."""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

from adapter.cli.console import complain, fail, messages, note, require_text, typed
from adapter.cli.conversation import Answer, Conversation, show_answer
from adapter.cli.error_words import errors_told, in_words
from adapter.cli.options import ContextLength, GpuLayers, ModelOrDemo
from adapter.cli.run import MaxTokens, Seed, System, Temperature
from adapter.cli.session import loaded_model, require_generator
from adapter.models.local_path import local_path
from adapter.wording import counted

_HELP = """\
/system TEXT   set the system prompt; without TEXT, leave it out
/retry         have the last answer written again
/undo          take back the last question and its answer
/clear         begin again
/save FILE     write the conversation as JSON
/load FILE     go on with one that was written
/help          this list
/bye           end; so does Ctrl-D
\"\"\"            begin and end a text of several lines"""
_KEPT_LINES = 1000


def chat(
    model: ModelOrDemo = None,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.8,
    seed: Seed = None,
    context: ContextLength = None,
    gpu_layers: GpuLayers = None,
) -> None:
    """Talk with a model. Type /help for the commands of a conversation.

    Ctrl-C stops an answer, and ends the command if there is none.
    """
    require_text("--system", system)
    settings = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    with errors_told():
        model_loaded = loaded_model(model, context_length=context, n_gpu_layers=gpu_layers)
        with model_loaded as loaded:
            with loaded.lease() as weights:
                require_generator(loaded.name, weights)
            conversation = Conversation(loaded, settings, system=system)
            if sys.stdin.isatty():
                note(f"{loaded.name} on {loaded.device}; /help for help")
            with_history = _History()
            with_history.load()
            try:
                _Chat(conversation).run()
            finally:
                with_history.save()


class _Chat:
    """Reads lines and executes their commands."""

    def __init__(self, conversation: Conversation) -> None:
        self._conversation = conversation
        self._is_terminal = sys.stdin.isatty()

    def run(self) -> None:
        """Talk until the user ends it."""
        with suppress(EOFError):
            while True:
                text = self._read()
                if text.startswith("/"):
                    self._command(text)
                elif text.strip():
                    self._answer(text)

    def _read(self) -> str:
        text = self._line(">>> ")
        if not text.lstrip().startswith('"""'):
            return text
        lines = [text.lstrip()[3:]]
        while not lines[-1].rstrip().endswith('"""'):
            lines.append(self._line("... "))
        return "\n".join(lines).rstrip()[:-3]

    def _line(self, mark: str) -> str:
        while True:
            try:
                line = f"{typed(mark)}\n" if self._is_terminal else sys.stdin.readline()
                line.encode()
            except OSError as error:
                fail(f"standard input cannot be read: {error.strerror}")
            except UnicodeError:
                self._problem(f"this line is no {sys.stdin.encoding.upper()} text")
                continue
            if not line:
                raise EOFError
            return line.removesuffix("\n")

    def _answer(self, text: str) -> None:
        from dspy.lm15 import ContextLengthError, LM15Error

        answer = Answer()
        try:
            show_answer(self._conversation, text, answer)
        except KeyboardInterrupt:
            messages.print()
            note("stopped")
            if not self._is_terminal:
                raise
            return
        except ContextLengthError as error:
            self._problem(f"{in_words(error)}; /undo or /clear makes room")
            return
        except LM15Error as error:
            self._problem(in_words(error))
            return
        of = self._conversation.engine.context_length
        total = answer.prompt_tokens + answer.completion_tokens
        cut = ", cut off" if answer.finish_reason == "length" else ""
        rate = f"{counted(answer.completion_tokens, 'token')}, {answer.rate:.1f} tokens/s"
        messages.print(f"{rate}, {total} of {of} of context{cut}", style="dim")

    def _problem(self, text: str) -> None:
        if not self._is_terminal:  # for programs that pipe questions in
            fail(text)
        complain(text)

    def _command(self, text: str) -> None:
        name, _, rest = text.strip().partition(" ")
        conversation, rest = self._conversation, rest.strip()
        if name in ("/bye", "/quit", "/exit"):
            raise EOFError
        if name == "/clear":
            conversation.turns.clear()
        elif name == "/system":
            conversation.system = rest or None
        elif name == "/undo" and conversation.turns:
            del conversation.turns[-2:]
        elif name == "/retry" and conversation.turns:
            question = conversation.turns[-2][1]
            del conversation.turns[-2:]
            self._answer(question)
        elif name in ("/save", "/load") and rest:
            self._file(name, local_path(rest))
        elif name == "/help":
            note(_HELP)
        elif name in ("/undo", "/retry"):
            self._problem("there is nothing before")
        elif name in ("/save", "/load"):
            self._problem(f"which file? {name} FILE")
        else:
            self._problem(f"there is no {name}; /help lists what there is")

    def _file(self, name: str, path: Path) -> None:
        try:
            if name == "/save":
                save(self._conversation, path)
            else:
                load(self._conversation, path)
        except OSError as error:
            what = "written" if name == "/save" else "read"
            self._problem(f"{path} cannot be {what}: {error.strerror or error}")
        except ValueError as error:
            self._problem(str(error))


def save(conversation: Conversation, path: Path) -> None:
    """Write a conversation as OpenAI's list of messages, in one step. Raises OSError."""
    found = [{"role": "system", "content": conversation.system}] if conversation.system else []
    found += [{"role": role, "content": text} for role, text in conversation.turns]
    scratch = path.with_name(f".{path.name}.{os.getpid()}.incomplete")
    try:
        scratch.write_text(json.dumps(found, indent=2, ensure_ascii=False), encoding="utf-8")
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def load(conversation: Conversation, path: Path) -> None:
    """Continue a saved conversation.

    Raises:
        OSError: the file cannot be read. Nothing changes.
        ValueError: it is not a conversation. Nothing changes.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        turns = [(each["role"], each["content"]) for each in found]
        is_list = isinstance(found, list)
    except (KeyError, TypeError, RecursionError):
        turns, is_list = [], False
    system = turns.pop(0)[1] if turns and turns[0][0] == "system" else None
    roles = [role for role, _ in turns]
    texts = [system or "", *(text for _, text in turns)]
    in_turn = roles == ["user", "assistant"] * (len(turns) // 2)
    if not is_list or not in_turn or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{path} holds no conversation: a list of messages with role and content")
    conversation.system, conversation.turns = system or None, turns


class _History:
    """The lines that the user typed, for the arrow keys, kept for the next conversation."""

    def __init__(self) -> None:
        import platformdirs

        self._path = platformdirs.user_state_path("pyllama") / "chat_history"

    def load(self) -> None:
        """Read them, if there is a terminal and readline."""
        with suppress(ImportError, OSError):
            if sys.stdin.isatty():
                import readline

                readline.set_history_length(_KEPT_LINES)
                readline.read_history_file(self._path)

    def save(self) -> None:
        """Write them so that only this user can read them."""
        with suppress(ImportError, OSError):
            if sys.stdin.isatty():
                import readline

                self._path.parent.mkdir(parents=True, exist_ok=True)
                readline.write_history_file(self._path)
                self._path.chmod(0o600)
