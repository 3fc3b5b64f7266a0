"""The keywords of JSON schemas, draft 2020-12, by what becomes of them here."""

# fmt: off
ENFORCED = (
    "type", "enum", "const", "properties", "required", "additionalProperties", "patternProperties", "minProperties",
    "maxProperties", "items", "prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "format",
    "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "anyOf", "oneOf", "allOf", "$ref",
)
"""What a text is held to."""
NOTES = (
    "$schema", "$comment", "title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly",
    "$defs", "definitions",
)
"""What says nothing about which values are valid: it is passed over."""
NOT_ENFORCED = (
    "not", "if", "then", "else", "dependentSchemas", "dependentRequired", "dependencies", "contains", "minContains",
    "maxContains", "uniqueItems", "propertyNames", "unevaluatedProperties", "unevaluatedItems", "additionalItems",
    "contentEncoding", "contentMediaType", "contentSchema", "$anchor", "$dynamicRef", "$dynamicAnchor",
    "$recursiveRef", "$recursiveAnchor", "$vocabulary", "$id", "id",
)
"""What llguidance does not know, or not to the letter: it is refused."""
# fmt: on
