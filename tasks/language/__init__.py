"""Language modelling: documents, the tokens that they are cut into, and untrained models to start from."""

from argprune.tasks.language.folders import is_text_folder as is_text_folder
from argprune.tasks.language.folders import language_tasks as language_tasks
from argprune.tasks.language.folders import read_language as read_language
from argprune.tasks.language.task import Language as Language
from argprune.tasks.language.tokenizers import END as END
from argprune.tasks.language.tokenizers import UNKNOWN as UNKNOWN
from argprune.tasks.language.tokenizers import TokenizerKind as TokenizerKind
from argprune.tasks.language.tokenizers import train_tokenizer as train_tokenizer
from argprune.tasks.language.untrained import Architecture as Architecture
from argprune.tasks.language.untrained import make_causal_lm as make_causal_lm
