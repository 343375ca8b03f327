"""Task vectors, differences between fine-tuned and pre-trained parameters: scaling, composing, and ranks.

Each tool is one pure function on parameter trees. Whatever scales weights changes their norms: project them again
(`normjax.project_weights`) where training goes on under a norm.
"""

from normjax.task_vectors.compose import chunk_groups as chunk_groups
from normjax.task_vectors.compose import compose as compose
from normjax.task_vectors.compose import importance_chunks as importance_chunks
from normjax.task_vectors.compose import random_groups as random_groups
from normjax.task_vectors.lines import lines as lines
from normjax.task_vectors.lines import lines_alpha as lines_alpha
from normjax.task_vectors.rank_plan import RankPlan as RankPlan
from normjax.task_vectors.rank_plan import low_rank_factors as low_rank_factors
from normjax.task_vectors.rank_plan import rank_plan as rank_plan
