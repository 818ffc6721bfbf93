"""Views of a population: which of them the guard keeps, and what members say with them merged.

    RUN/views/members/, lengths/              what members say of each view: see `store`
              chosen/chosen.json              the views that are kept, their weights, and figures
                     {outputs,lengths}/*.npy  what the members' kept views merge to, of val and test

Inference is done once a member and view; to choose and merge again takes none.
"""

from polyfuse.population_views.base import Chosen as Chosen
from polyfuse.population_views.base import chosen_views as chosen_views
from polyfuse.population_views.base import lengths_with_views as lengths_with_views
from polyfuse.population_views.base import stack_with_views as stack_with_views
from polyfuse.population_views.base import views_kept as views_kept
from polyfuse.population_views.base import with_views as with_views
from polyfuse.population_views.choosing import choose_views as choose_views
from polyfuse.population_views.merging import merge_heads as merge_heads
from polyfuse.population_views.merging import refuse_task as refuse_task
from polyfuse.population_views.store import ViewStore as ViewStore
