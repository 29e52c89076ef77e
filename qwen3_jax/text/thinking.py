"""The text that ends a model's thinking when its budget is used up."""

# Qwen's documentation of the thinking budget; the report (section 4.3) prints a stray period after </think>.
STOP_TEXT = (
    "\n\nConsidering the limited time by the user, I have to give the solution based on the thinking directly now.\n"
    "</think>\n\n"
)
