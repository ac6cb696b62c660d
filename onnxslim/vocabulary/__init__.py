"""Remove the rows of a table of token embeddings that a user's texts never need.

tokenizer_file  ids and special tokens of a `tokenizer.json`; the same file with fewer tokens
kept_ids        which ids stay: those of files, of calibration samples, and of special tokens
tables          the table that token ids index, and the head that scores the same tokens
run             one run of prune-vocabulary
"""
