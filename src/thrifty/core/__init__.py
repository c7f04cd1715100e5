"""The engine: five nouns (Site, Edit, Method, Plan, Attachment) that know only torch."""
from .attaching import attach
from .attachment import Attachment
from .edit import AttentionEdit, Branch, Edit, Product, Shared, WeightEdit, apply_weight, register, registered
from .finding import sites
from .ledger import attachments
from .method import Method, need, set_apart
from .plan import Row
from .routing import add_tasks, by_task, task
from .site import Site

__all__ = ["Attachment", "AttentionEdit", "Branch", "Edit", "Method", "Product", "Row", "Shared", "Site", "WeightEdit", "add_tasks",
           "apply_weight", "attach", "attachments", "by_task", "need", "register", "registered", "set_apart", "sites", "task"]
