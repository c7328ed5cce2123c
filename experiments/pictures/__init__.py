"""Pictures of digits as people make them: how many of each kind `digitcnn predict` reads right, refuses or marks."""
