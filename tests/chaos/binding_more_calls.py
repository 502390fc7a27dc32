"""Calls of samplers, grammars, states, adapters and templates; see binding_calls."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from binding_calls import call
from binding_world import Planned, World, damaged, odd, text

import pyllama
from pyllama import Sampler

# Samplers


def _sampler(world: World, draw: random.Random) -> Sampler:
    vocab = world.pick("model", draw).vocab
    seed = odd(draw, draw.choice([0, 1, 2**32 - 2]))
    few = odd(draw, draw.choice([0.0, 0.01, 0.3, 0.9, 1.0]))
    count = odd(draw, draw.choice([0, 1, 2, 5, 40, 1000]))
    keep = odd(draw, draw.choice([0, 1, 3, 400]))
    makers = [
        lambda: Sampler.greedy(),
        lambda: Sampler.dist(seed),
        lambda: Sampler.mirostat(vocab, seed, tau=odd(draw, 5.0), m=odd(draw, 100)),
        lambda: Sampler.mirostat_v2(seed, eta=odd(draw, 0.1)),
        lambda: Sampler.adaptive_p(seed, target=few, decay=odd(draw, 0.9)),
        lambda: Sampler.top_k(count),
        lambda: Sampler.top_p(few, min_keep=keep),
        lambda: Sampler.min_p(few, min_keep=keep),
        lambda: Sampler.typical(few, min_keep=keep),
        lambda: Sampler.top_n_sigma(odd(draw, 1.0)),
        lambda: Sampler.xtc(few, few, seed, min_keep=keep),
        lambda: Sampler.infill(vocab),
        lambda: Sampler.temp(odd(draw, draw.choice([0.0, 0.1, 1.0, -3.0, 1e6]))),
        lambda: Sampler.temp_ext(few, few, odd(draw, 1.0)),
        lambda: Sampler.penalties(vocab, last_n=count, repeat=odd(draw, 1.1), freq=few),
        lambda: Sampler.dry(
            vocab,
            multiplier=few,
            allowed_length=count,
            last_n=count,
            breakers=["\n", text(draw)[:40]],
        ),
        lambda: Sampler.logit_bias(vocab, {odd(draw, 5): odd(draw, -1.0), 7: float("-inf")}),
        lambda: Sampler.python(_in_python(world, draw)),
        lambda: pyllama.ReasoningBudgetSampler(
            vocab, start=[odd(draw, 5)], ends=[[6, 7], [odd(draw, 8)]], forced=[9, 10], budget=count
        ),
        lambda: _grammar_sampler(world, draw),
        lambda: _grammar_sampler(world, draw),
    ]
    return draw.choice(makers)()


def _in_python(world: World, draw: random.Random) -> Any:
    """A function for candidates: well behaved, failing, or using what it is called from."""
    how, other = draw.randrange(5), draw.random()

    def function(candidates: pyllama.Candidates) -> Any:
        again = random.Random(other)
        if how == 0:
            return candidates.with_logits(candidates.logit * 0.5)
        if how == 1:
            return candidates.keep(np.arange(len(candidates)) < 5)
        if how == 2:
            return candidates.select(0)
        if how == 3:
            raise Planned
        if again.random() < 0.5:
            world.pick("chain", again).reset()
        world.pick("context", again).close()
        return None

    return function


@call(4)
def make_sampler(world: World, draw: random.Random) -> None:
    world.keep("sampler", _sampler(world, draw))


@call(5)
def make_chain(world: World, draw: random.Random) -> None:
    steps = [_sampler(world, draw) for _ in range(draw.choice([0, 1, 2, 3]))]
    if draw.random() < 0.2:
        steps += world.several("sampler", draw, 2)
    if draw.random() < 0.8:
        steps.append(draw.choice([Sampler.greedy(), Sampler.dist(draw.randrange(9))]))
    grammar = _grammar_sampler(world, draw) if draw.random() < 0.3 else None
    world.keep("chain", pyllama.SamplerChain(steps, grammar=grammar, no_perf=draw.random() < 0.5))


@call(4)
def use_sampler(world: World, draw: random.Random) -> None:
    sampler = world.pick(draw.choice(["sampler", "chain"]), draw)
    how = draw.randrange(6)
    if how == 0:
        sampler.accept(odd(draw, draw.randrange(260)))
    elif how == 1:
        sampler.reset()
    elif how == 2:
        world.keep(
            "chain" if isinstance(sampler, pyllama.SamplerChain) else "sampler", sampler.clone()
        )
    elif how == 3:
        _ = sampler.seed, sampler.closed, repr(sampler)
    else:
        count = draw.choice([1, 2, 40, 300, 400])
        logits = np.random.default_rng(draw.randrange(99)).standard_normal(count) * 5
        ids = None if draw.random() < 0.8 else np.arange(count)[::-1] * draw.choice([1, 7])
        sampler.apply(pyllama.Candidates(odd(draw, logits), odd(draw, ids)))


@call(3)
def change_chain(world: World, draw: random.Random) -> None:
    chain = world.pick("chain", draw)
    how = draw.randrange(6)
    if how in (0, 1):
        chain.add(_sampler(world, draw) if draw.random() < 0.7 else world.pick("sampler", draw))
    elif how in (2, 3):
        world.keep("sampler", chain.remove(odd(draw, draw.choice([-1, 0, 1]))))
    elif how == 4:
        chain.copy_state(world.pick("chain", draw))
    else:
        chain.close()


@call(1)
def read_chain(world: World, draw: random.Random) -> None:
    chain = world.pick("chain", draw)
    _ = chain.names, chain.selects, len(chain), list(chain), chain.grammar, chain.perf()
    chain.perf_reset()
    world.keep("sampler", chain[odd(draw, 0)])


@call(6)
def sample(world: World, draw: random.Random) -> None:
    context, chain = world.pick("context", draw), world.pick("chain", draw)
    if draw.random() < 0.6:
        context.decode_token(draw.randrange(260), context.memory.seq_pos_max(0) + 1)
    chain.sample(context, odd(draw, draw.choice([-1, -1, -1, 0, 1, 9])))


@call(2)
def sample_many(world: World, draw: random.Random) -> None:
    context = world.pick("context", draw)
    chains = world.several("chain", draw, 4)
    asked = {draw.choice([-1, 0, 1, 2, 3, 9]): chain for chain in chains}
    pyllama.sample_each(context, asked, n_threads=odd(draw, draw.choice([None, 1, 2, 4])))


@call(3)
def generate_many(world: World, draw: random.Random) -> None:
    context = world.pick("context", draw)
    chains = world.several("chain", draw, 4)
    batch, runs = pyllama.Batch(8), {}
    for seq_id, chain in enumerate(chains):
        pos = context.memory.seq_pos_max(seq_id) + 1
        batch.add(draw.randrange(260), pos, (seq_id,), output=draw.random() < 0.95)
        stops = draw.choice([(), (), ("a",), ("never", "!")])
        runs[odd(draw, seq_id)] = pyllama.Run(
            chain,
            odd(draw, seq_id),
            odd(draw, pos + 1),
            odd(draw, draw.choice([1, 3, 40])),
            stops,
            forcing=draw.choice([None, pyllama.Forcing(1, draw.choice([1, 32]))]),
            tells_ends=draw.random() < 0.5,
        )
    steps, threads = odd(draw, draw.choice([1, 2, 9, 60])), draw.choice([None, 1, 2, 4])
    generated = pyllama.generate_each(
        context, batch, runs, max_steps=steps, seconds=odd(draw, 1), n_threads=threads
    )
    for output in runs:
        assert len(generated[output].tokens) <= 33 * steps


# Grammars

_GRAMMARS = (
    'root ::= "yes" | "no"',
    'root ::= [a-z]+ " " [0-9]{1,3}',
    'root ::= "{" item ("," item)* "}"\nitem ::= "\\"" [^"]* "\\""',
    "root ::= [^\\x00-\\x1f]*",
    'root ::= "" | "a" root',
    'root ::= <[7]> "x" | [^"] <[3]>',
    "root ::= root",
    'root ::= "a"{2,1}',
    "root ::= ((((((((([0-9]))))))))){0,9}",
    'root ::= "北" | "\\U0001F999" [\\u0300-\\uFFFF]',
    'a ::= "x"',
    "",
)
_SCHEMAS = (
    True,
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "array", "items": {"enum": ["x", 1, None]}, "maxItems": 3},
    {"type": "string", "pattern": "^[a-f]{2,5}$"},
    {"type": "string", "maxLength": 5},
    {"$ref": "#/$defs/a", "$defs": {"a": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/a"}]}}},
    {"type": "integer", "minimum": -5, "maximum": 10**12},
    {"oneOf": []},
    {"type": 7},
)


def _grammar(draw: random.Random) -> Any:
    how = draw.random()
    if how < 0.2:
        return pyllama.Grammar.from_json_schema(odd(draw, draw.choice(_SCHEMAS)))
    gbnf = draw.choice(_GRAMMARS)
    if how < 0.4 and gbnf:
        at = draw.randrange(len(gbnf))
        gbnf = (
            gbnf[:at] + draw.choice(["", "(", "*", "{9}", '"', "::=", "\\", "\0"]) + gbnf[at + 1 :]
        )
    return odd(draw, gbnf)


def _grammar_sampler(world: World, draw: random.Random) -> pyllama.GrammarSampler:
    vocab = world.pick("model", draw).vocab
    lazy: dict[str, Any] = {}
    if draw.random() < 0.2:
        lazy["trigger_patterns"] = [odd(draw, draw.choice(["he", "(l+)o", "[", "(a+)+$"]))]
    if draw.random() < 0.2:
        lazy["trigger_tokens"] = [odd(draw, draw.randrange(260))]
    return pyllama.GrammarSampler(vocab, _grammar(draw), **lazy)


@call(2)
def make_grammar(world: World, draw: random.Random) -> None:
    world.keep("sampler", _grammar_sampler(world, draw))


@call(2)
def use_grammar(world: World, draw: random.Random) -> None:
    sampler = (
        world.pick("chain", draw).grammar if draw.random() < 0.5 else world.pick("sampler", draw)
    )
    if not isinstance(sampler, pyllama.GrammarSampler):
        return
    how = draw.randrange(4)
    if how == 0:
        allowed = sampler.allowed_tokens()
        if len(allowed):
            sampler.accept(int(draw.choice(list(allowed))))
    elif how == 1:
        sampler.allows(odd(draw, [draw.randrange(260) for _ in range(5)]))
    elif how == 2:
        _ = sampler.complete, sampler.forced_text()
    else:
        sampler.accept(draw.randrange(260))


# States


@call(3)
def save_state(world: World, draw: random.Random) -> None:
    context = world.pick("context", draw)
    sequence, partial = odd(draw, draw.randrange(context.n_seq_max)), draw.random() < 0.2
    state, how = context.state, draw.randrange(5)
    if how == 0:
        world.keep("state", state.get_data())
    elif how == 1:
        world.keep("state", state.seq_get_data(sequence, partial_only=partial))
    elif how == 2:
        state.save_file(world.folder / "state", odd(draw, [1, 2, 3]))
    elif how == 3:
        state.seq_save_file(world.folder / "sequence", sequence, [])
    else:
        buffer = bytearray(min(odd(draw, state.get_size()), 1 << 24))
        state.get_data_into(buffer)
        world.keep("state", bytes(buffer))


@call(4)
def load_state(world: World, draw: random.Random) -> None:
    context = world.pick("context", draw)
    sequence = odd(draw, draw.randrange(context.n_seq_max))
    how = draw.randrange(4)
    if how < 2:
        data = world.pick("state", draw)
        if draw.random() < 0.4:
            data = damaged(draw, data)
        if how == 0:
            context.state.set_data(odd(draw, data))
        else:
            context.state.seq_set_data(odd(draw, data), sequence)
        return
    path = world.folder / draw.choice(["state", "sequence", "missing"])
    if draw.random() < 0.4 and path.exists():
        path.write_bytes(damaged(draw, path.read_bytes()))
    if how == 2:
        context.state.load_file(path)
    else:
        context.state.seq_load_file(path, sequence)


# Adapters


@call(2)
def lora(world: World, draw: random.Random) -> None:
    how = draw.randrange(4)
    if how == 0:
        adapter = pyllama.LoraAdapter(world.pick("model", draw), world.files / "adapter.lora")
        world.keep("lora", adapter)
    elif how == 1:
        scales = {one: odd(draw, 0.5) for one in world.several("lora", draw, 2)}
        pyllama.set_adapters_lora(world.pick("context", draw), scales)
    elif how == 2:
        world.pick("lora", draw).close()
    else:
        rows = pyllama.load_control_vector(world.files / "vector.gguf")
        pyllama.set_control_vector(world.pick("context", draw), odd(draw, rows, 0.2))


# Templates and parsers

_TEMPLATES = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}",
    "{% for m in messages %}{{ m['content'] | upper | trim }}{{ bos_token }}{% endfor %}",
    "{{ messages[9].content }}",
    "{{ raise_exception('no') }}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(messages | length) }}{{ tools | tojson }}",
    "{% if x %}",
    "{{ 'a' * 5 }}{{ strftime_now('%Y') }}",
)


@call(2)
def make_template(world: World, draw: random.Random) -> None:
    if draw.random() < 0.5:
        template = pyllama.ChatTemplate(world.pick("model", draw))
    else:
        template = pyllama.ChatTemplate(source=odd(draw, draw.choice(_TEMPLATES)), bos="<s>")
    world.keep("template", template)


@call(3)
def apply_template(world: World, draw: random.Random) -> None:
    template = world.pick("template", draw)
    roles = ["system", "user", "assistant", "tool", "other"]
    messages = [
        {"role": odd(draw, draw.choice(roles)), "content": odd(draw, text(draw))}
        for _ in range(draw.randrange(4))
    ]
    options: dict[str, Any] = {}
    if draw.random() < 0.2:
        function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
        options["tools"] = odd(draw, [{"type": "function", "function": function}])
    if draw.random() < 0.2:
        options["json_schema"] = odd(draw, {"type": "object"})
    if draw.random() < 0.2:
        options["continue_final_message"] = odd(draw, True)
    rendered = template.apply(odd(draw, messages), **options)
    world.keep("parser", rendered.parser)
    _ = template.capabilities


@call(2)
def parse(world: World, draw: random.Random) -> None:
    parser = world.pick("parser", draw)
    message = parser.parse(odd(draw, text(draw)), partial=draw.random() < 0.5)
    message.compute_diffs(parser.parse(text(draw), partial=True))


@call(1)
def measure(world: World, draw: random.Random) -> None:
    path = world.files / draw.choice(["llama.gguf", "jamba.gguf", "adapter.lora"])
    pyllama.memory_use(path, n_ctx=odd(draw, 64))
