"""Parts of the space: what each change of the article's configuration brings alone, on the validation images."""
