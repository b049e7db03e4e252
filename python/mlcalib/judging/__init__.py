"""Which of two models gives better answers, as people and other models say."""

from mlcalib.judging.agreement import krippendorff_alpha
from mlcalib.judging.answers import generate
from mlcalib.judging.judges import (
    Judge,
    LanguageModelJudge,
    Opinion,
    RewardModelJudge,
    is_reward_model,
    read_template,
)
from mlcalib.judging.page import QUESTION, Key, read_key, write_page
from mlcalib.judging.ratings import Rating, Score, left_share, read_ratings, score_ratings
from mlcalib.judging.run import Judgement, PositionBias, judge, judged_win_rates, position_bias
from mlcalib.judging.texts import Pair, pair, read_generations, read_prompts, read_source
from mlcalib.judging.url_judge import UrlJudge
from mlcalib.judging.win_rates import DEFINITION, Verdict, WinRate, wilson, win_rate
from mlcalib.results.generations import Generation, Prompt, Source

__all__ = [
    "DEFINITION",
    "QUESTION",
    "Generation",
    "Judge",
    "Judgement",
    "Key",
    "LanguageModelJudge",
    "Opinion",
    "Pair",
    "PositionBias",
    "Prompt",
    "Rating",
    "RewardModelJudge",
    "Score",
    "Source",
    "UrlJudge",
    "Verdict",
    "WinRate",
    "generate",
    "is_reward_model",
    "judge",
    "judged_win_rates",
    "krippendorff_alpha",
    "left_share",
    "pair",
    "position_bias",
    "read_generations",
    "read_key",
    "read_prompts",
    "read_ratings",
    "read_source",
    "read_template",
    "score_ratings",
    "wilson",
    "win_rate",
    "write_page",
]
