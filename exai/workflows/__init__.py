"""Workflows: tools that ask a model with an expert's instructions, and whose steps are rows of the conversation."""

from exai.workflows.definitions import Workflow, instructions_by_name, load_workflows
from exai.workflows.requests import WorkflowRequest, WorkflowResult
from exai.workflows.service import WorkflowService

__all__ = ["Workflow", "WorkflowRequest", "WorkflowResult", "WorkflowService", "instructions_by_name", "load_workflows"]
