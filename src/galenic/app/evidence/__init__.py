"""`galenic evidence`: claims of papers put to the test, and the pages that say what came out."""
