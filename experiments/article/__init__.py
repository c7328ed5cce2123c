"""The published study of the article: its tables, contrasts, figures and text."""
