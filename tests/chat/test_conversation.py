"""Conversations: history, the state kept between turns, commands, interrupts."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from bigram_engine import BigramEngine, MarkingState
from kandiga_run.chat import Conversation, Interrupted
from kandiga_run.errors import RunError
from kandiga_run.generation.kept_state import KeptState
from scripted_engine import (
    CHATML,
    FORGETFUL,
    TRIMMING,
    ScriptedEngine,
    chatml_prompts,
    conversation,
    mixtral_prompts,
    say,
    script,
)


class TestState:
    """A turn computes only what the state has not seen, and never something else."""

    def assert_seen_is_the_rendered_prompt(self, talk: Conversation, engine: BigramEngine) -> None:
        """The kept state has seen the whole conversation but the token that ended it."""
        rendered = talk.prompts.render(talk.messages, add_generation_prompt=False)
        seen = engine.states[-1].tokens
        assert talk.prompts.encode(rendered)[: len(seen)] == seen

    def test_second_turn_prefills_what_is_new(self, tmp_path: Path) -> None:
        prompts = chatml_prompts(tmp_path)
        talk, engine = conversation(prompts, [script(prompts, "It is Paris.")])
        assert say(talk, "Capital of France?") == "It is Paris."
        first = talk.last.stats.prompt_tokens
        assert say(talk, "Really?") == "It is Paris."
        assert len(engine.states) == 1
        new = "<|im_end|>\n<|im_start|>user\nReally?<|im_end|>\n<|im_start|>assistant\n"
        assert talk.last.stats.prompt_tokens == len(prompts.encode(new))
        answer = len(prompts.encode("It is Paris."))
        assert talk.last.stats.reused_tokens == first + answer
        self.assert_seen_is_the_rendered_prompt(talk, engine)

    def test_messages_are_the_history(self, tmp_path: Path) -> None:
        prompts = chatml_prompts(tmp_path)
        talk, _ = conversation(prompts, [script(prompts, "Yes.")], system="Be brief.")
        say(talk, "One?")
        say(talk, "Two?")
        assert [message["content"] for message in talk.messages] == ["One?", "Yes.", "Two?", "Yes."]
        text = prompts.tokenizer.decode(talk._kept.seen, skip_special_tokens=False)
        assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne?")

    def test_sentencepiece_answers_are_continued(self, tmp_path: Path) -> None:
        """The space before the first word is in its token, and not in the text of the answer."""
        prompts = mixtral_prompts(tmp_path)
        talk, engine = conversation(prompts, [script(prompts, "the router")])
        assert say(talk, "a") == "the router"
        assert say(talk, "r") == "the router"
        assert len(engine.states) == 1
        self.assert_seen_is_the_rendered_prompt(talk, engine)

    def test_tokens_of_the_model_stand(self, tmp_path: Path) -> None:
        """A model may spell a word in other tokens than the tokenizer would."""
        prompts = chatml_prompts(tmp_path)
        spelled = [prompts.tokenizer.token_to_id(letter) for letter in "expert"]
        assert spelled != prompts.encode("expert")
        talk, engine = conversation(prompts, [[*spelled, *prompts.stop_token_ids]])
        say(talk, "a")
        assert say(talk, "b") == "expert"
        assert len(engine.states) == 1
        seen = engine.states[0].tokens
        start = len(prompts.encode("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"))
        assert seen[start : start + 6] == spelled

    def test_template_that_forgets_cuts_the_state_back(self, tmp_path: Path) -> None:
        prompts = chatml_prompts(tmp_path, FORGETFUL)
        talk, engine = conversation(prompts, [script(prompts, "hm</think>Yes.")])
        engine.can_trim = True
        say(talk, "One?")
        first = talk.last.stats.prompt_tokens
        say(talk, "Two?")
        assert len(engine.states) == 1
        assert talk.last.stats.reused_tokens == first
        self.assert_seen_is_the_rendered_prompt_without_answer(talk, engine)

    def test_same_prompt_again(self, tmp_path: Path) -> None:
        """At least one token is computed, or there would be no logits to go on from."""
        prompts = chatml_prompts(tmp_path)
        talk, engine = conversation(prompts, [script(prompts, "Yes.")])
        engine.can_trim = True
        say(talk, "One?")
        first = talk.last.stats.prompt_tokens
        talk.reset()
        assert say(talk, "One?") == "Yes."
        assert len(engine.states) == 1
        assert talk.last.stats.prompt_tokens == 1
        assert talk.last.stats.reused_tokens == first - 1

    def test_recurrent_state_is_rebuilt_when_the_template_forgets(self, tmp_path: Path) -> None:
        prompts = chatml_prompts(tmp_path, FORGETFUL)
        talk, engine = conversation(prompts, [script(prompts, "hm</think>Yes.")])
        say(talk, "One?")
        say(talk, "Two?")
        assert len(engine.states) == 2
        rendered = prompts.render(talk.messages[:-1])
        assert engine.states[1].tokens[: len(prompts.encode(rendered))] == prompts.encode(rendered)
        assert "hm" not in rendered
        assert talk.last.stats.reused_tokens == 0

    def test_template_that_trims_rebuilds(self, tmp_path: Path) -> None:
        prompts = chatml_prompts(tmp_path, TRIMMING)
        talk, engine = conversation(prompts, [script(prompts, "Yes.\n\n")])
        say(talk, "One?")
        say(talk, "Two?")
        self.assert_seen_is_the_rendered_prompt_without_answer(talk, engine)

    def assert_seen_is_the_rendered_prompt_without_answer(
        self, talk: Conversation, engine: BigramEngine
    ) -> None:
        prompt = talk.prompts.encode(talk.prompts.render(talk.messages[:-1]))
        assert engine.states[-1].tokens[: len(prompt)] == prompt

    def test_new_system_prompt_rebuilds(self, tmp_path: Path) -> None:
        prompts = chatml_prompts(tmp_path)
        talk, engine = conversation(prompts, [script(prompts, "Yes.")])
        say(talk, "One?")
        talk.system = "Say no."
        say(talk, "Two?")
        assert len(engine.states) == 2
        self.assert_seen_is_the_rendered_prompt_without_system(talk, engine)

    def assert_seen_is_the_rendered_prompt_without_system(
        self, talk: Conversation, engine: BigramEngine
    ) -> None:
        text = talk.prompts.decode(engine.states[-1].tokens, skip_special_tokens=False)
        assert text.startswith("<|im_start|>system\nSay no.<|im_end|>\n<|im_start|>user\nOne?")

    def test_reset_forgets(self, tmp_path: Path) -> None:
        prompts = chatml_prompts(tmp_path)
        talk, engine = conversation(prompts, [script(prompts, "Yes.")])
        say(talk, "One?")
        talk.reset()
        say(talk, "Two?")
        text = prompts.decode(engine.states[-1].tokens, skip_special_tokens=False)
        assert "One" not in text

    def test_answer_cut_by_length_is_continued(self, tmp_path: Path) -> None:
        """The last token of such an answer was never computed: the next turn brings it in."""
        prompts = chatml_prompts(tmp_path)
        long = script(prompts, "the router selects a few experts " * 10)
        talk, engine = conversation(prompts, [long, script(prompts, "Yes.")])
        answer = say(talk, "One?")
        assert talk.last.finish_reason == "length"
        say(talk, "Two?")
        assert len(engine.states) == 1
        text = prompts.decode(engine.states[0].tokens, skip_special_tokens=False)
        assert f"{answer}<|im_end|>\n<|im_start|>user\nTwo?" in text


class TestGoingBack:
    """Questions taken back, answers made again, reasoning left out: little is computed twice."""

    @pytest.fixture(params=["trims", "marks"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        return str(request.param)

    def talk(
        self, folder: Path, kind: str, answers: Sequence[str], template: str = CHATML
    ) -> tuple[Conversation, ScriptedEngine]:
        prompts = chatml_prompts(folder, template)
        talk, engine = conversation(prompts, [script(prompts, answer) for answer in answers])
        engine.can_trim = kind == "trims"
        engine.state_type = MarkingState
        return talk, engine

    def assert_state_is_sound(self, talk: Conversation, engine: ScriptedEngine) -> None:
        """The model has seen what a fresh state would have been shown."""
        assert len(engine.states) == 1
        rendered = talk._render()
        seen = talk.prompts.decode(engine.states[0].tokens, skip_special_tokens=False)
        assert rendered.startswith(seen.removesuffix("<|im_end|>"))

    def test_undo(self, tmp_path: Path, kind: str) -> None:
        talk, engine = self.talk(tmp_path, kind, ["Yes.", "No.", "Well."])
        say(talk, "One?")
        say(talk, "Two?")
        assert talk.undo() == "Two?"
        assert [message["content"] for message in talk.messages] == ["One?", "Yes."]
        assert say(talk, "Three?") == "Well."
        assert talk.last.stats.reused_tokens > 0
        self.assert_state_is_sound(talk, engine)

    def test_undo_of_nothing(self, tmp_path: Path, kind: str) -> None:
        talk, _ = self.talk(tmp_path, kind, ["Yes."])
        assert talk.undo() is None

    def test_answer_again(self, tmp_path: Path, kind: str) -> None:
        talk, engine = self.talk(tmp_path, kind, ["Yes.", "No."])
        say(talk, "the router selects a few experts, does it?")
        prompt_tokens = talk.last.stats.prompt_tokens
        assert "".join(chunk.text for chunk in talk.reply_again()) == "No."
        assert [message["content"] for message in talk.messages][1:] == ["No."]
        # The question is not computed again, but for what begins the answer.
        assert talk.last.stats.prompt_tokens < prompt_tokens / 2
        self.assert_state_is_sound(talk, engine)

    def test_nothing_to_answer_again(self, tmp_path: Path, kind: str) -> None:
        talk, _ = self.talk(tmp_path, kind, ["Yes."])
        with pytest.raises(RunError, match="no message to answer"):
            talk.reply_again()

    def test_reasoning_is_apart_and_left_out_of_later_turns(
        self, tmp_path: Path, kind: str
    ) -> None:
        template = CHATML + "{# <think> </think> #}"
        talk, engine = self.talk(tmp_path, kind, ["<think>\nhm\n</think>\n\nYes.", "No."], template)
        assert say(talk, "One?") == "Yes."
        answer = {"role": "assistant", "content": "Yes.", "reasoning_content": "hm"}
        assert talk.messages[-1] == answer
        question = talk.prompts.render(talk.messages[:1], add_generation_prompt=False)
        say(talk, "Two?")
        assert talk.last.stats.reused_tokens >= len(talk.prompts.encode(question))
        self.assert_state_is_sound(talk, engine)

    @pytest.mark.parametrize("has_room", [True, False])
    def test_a_mark_is_counted_in_the_budget(self, tmp_path: Path, has_room: bool) -> None:
        """Without room for one the conversation goes on, and reads again what a mark would save."""
        talk, engine = self.talk(tmp_path, "marks", ["Yes."])
        reserved: list[int] = []

        def reserve(nbytes: int, num_states: int, max_tokens: int) -> int:
            reserved.append(nbytes)
            if nbytes and not has_room:
                raise RunError("no room")
            return 512

        engine.budget_bytes, engine.reserve = 10**9, reserve
        engine.state_type = type("Weighing", (engine.state_type,), {"recurrent_nbytes": 70})
        talk._kept = KeptState(engine, talk.context_tokens, marks_bytes=0)
        for _ in range(3):
            assert say(talk, "One?") == "Yes."
        assert reserved[:2] == [70] if has_room else [70, 0]
        assert len(talk._kept._marks) == (1 if has_room else 0)

    def test_marks_have_a_limit(self, tmp_path: Path) -> None:
        talk, engine = self.talk(tmp_path, "marks", ["Yes."])
        talk._kept = KeptState(engine, talk.context_tokens, marks_bytes=250)
        for _ in range(4):
            say(talk, "One?")
        assert len(talk._kept._marks) == 2


class TestInterrupts:
    """A stopped answer stays, and the conversation goes on."""

    def test_close_keeps_what_was_said(self, tmp_path: Path) -> None:
        prompts = chatml_prompts(tmp_path)
        talk, engine = conversation(prompts, [script(prompts, "the router selects")])
        reply = talk.reply("One?")
        said = next(reply).text + next(reply).text
        reply.close()
        assert talk.messages[-1] == {"role": "assistant", "content": said}
        say(talk, "Two?")
        assert len(engine.states) == 1
        text = prompts.decode(engine.states[0].tokens, skip_special_tokens=False)
        assert f"assistant\n{said}<|im_end|>\n<|im_start|>user\nTwo?" in text

    def test_interrupted_prefill_is_not_computed_again(self, tmp_path: Path) -> None:
        prompts = chatml_prompts(tmp_path)
        talk, engine = conversation(prompts, [script(prompts, "Yes.")])

        def give_up(done: int, total: int) -> None:
            raise Interrupted

        with pytest.raises(Interrupted):
            list(talk.reply("What do the experts do?", on_progress=give_up))
        assert talk.messages == []
        assert engine.states[0].position == 8
        assert say(talk, "What do the experts do?") == "Yes."
        assert len(engine.states) == 1
        assert talk.last.stats.reused_tokens == 8

    @pytest.mark.parametrize("error", [KeyboardInterrupt, RunError])
    def test_failure_inside_the_model_drops_the_state(
        self, tmp_path: Path, error: type[BaseException]
    ) -> None:
        """A forward pass cut in the middle may have written half of its state."""
        prompts = chatml_prompts(tmp_path)
        talk, engine = conversation(prompts, [script(prompts, "the router selects")])
        reply = talk.reply("One?")
        next(reply)

        def fail() -> None:
            raise error

        engine.before_forward = fail
        with pytest.raises(error):
            next(reply)
        engine.before_forward = lambda: None
        say(talk, "Two?")
        assert len(engine.states) == 2
        assert talk.last.stats.reused_tokens == 0


class TestLimits:
    """Refusals leave the conversation as it was."""

    def test_outgrown_context(self, tmp_path: Path) -> None:
        prompts = chatml_prompts(tmp_path)
        talk, _ = conversation(prompts, [script(prompts, "Yes.")], context_tokens=60)
        say(talk, "One?")
        with pytest.raises(RunError, match=r"context 60: start over"):
            say(talk, "the router selects a few experts " * 10)
        assert len(talk.messages) == 2
        say(talk, "Two?")

    def test_answer_ends_at_the_context(self, tmp_path: Path) -> None:
        prompts = chatml_prompts(tmp_path)
        long = script(prompts, "the router selects a few experts " * 10)
        talk, engine = conversation(prompts, [long], context_tokens=40)
        say(talk, "One?")
        assert talk.last.finish_reason == "length"
        assert engine.states[0].position == 39

    def test_template_refuses(self, tmp_path: Path) -> None:
        template = "{% if messages|length > 1 %}{{ raise_exception('too many') }}{% endif %}x"
        prompts = chatml_prompts(tmp_path, template)
        talk, _ = conversation(prompts, [script(prompts, "Yes.")])
        say(talk, "One?")
        with pytest.raises(RunError, match="too many"):
            say(talk, "Two?")
        assert len(talk.messages) == 2
