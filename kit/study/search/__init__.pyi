from .result import IMPORTANCE_TRIALS as IMPORTANCE_TRIALS
from .result import SearchResult as SearchResult
from .result import picked_sentence as picked_sentence
from .space import Space as Space
from .space import search_space as search_space
from .worker import Search as Search
from .worker import run_search as run_search
