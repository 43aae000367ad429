"""Kinds of tasks besides classification of texts and language modelling."""

from argprune.tasks.kinds.entities import Entities as Entities
from argprune.tasks.kinds.entities import Sentence as Sentence
from argprune.tasks.kinds.generation import DataToText as DataToText
from argprune.tasks.kinds.generation import Described as Described
from argprune.tasks.kinds.masked import MaskedLanguage as MaskedLanguage
from argprune.tasks.kinds.spans import Answer as Answer
from argprune.tasks.kinds.spans import Question as Question
from argprune.tasks.kinds.spans import SpanExtraction as SpanExtraction
