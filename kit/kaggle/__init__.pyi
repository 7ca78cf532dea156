from . import bundle as bundle
from . import kaggle_client as kaggle_client
from . import on_kaggle as on_kaggle
from . import submission as submission
