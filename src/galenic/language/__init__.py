"""Language: templates, verbalisers, and masked models that read them."""
