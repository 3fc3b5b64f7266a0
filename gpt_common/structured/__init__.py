"""Text that keeps to a form: a JSON schema, a regular expression or a grammar, as the tokens that may come next.

`forms.py` says what a form is and compiles it, through llguidance, for the vocabulary of a tokenizer; a `Constraint`
follows one text token by token. What a schema asks for and llguidance would not enforce is refused by `schemas.py`.
"""

from gpt_common.structured.checking import checker
from gpt_common.structured.divergence import Divergence
from gpt_common.structured.forms import CompiledForm, Constraint, Form, compile_form, form_in

__all__ = ["CompiledForm", "Constraint", "Divergence", "Form", "checker", "compile_form", "form_in"]
