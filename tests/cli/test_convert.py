"""`qwen3 convert` and `qwen3 tokenizer train`."""

from safetensors.numpy import load_file

import qwen3_jax


def test_convert_to_orbax_and_back_and_to_another_type(qwen3, folder, tmp_path):
    orbax, back, half = tmp_path / "orbax", tmp_path / "back", tmp_path / "half"
    code, out, err = qwen3("convert", folder, orbax, "--to", "orbax")
    assert (code, out) == (0, ""), err
    assert qwen3("convert", orbax, back, "--to", "hf")[0] == 0
    names = ("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja")
    for name in names:
        assert (back / name).read_bytes() == (tmp_path.joinpath(folder) / name).read_bytes(), name
    assert qwen3("convert", orbax, half, "--to", "hf", "--dtype", "bfloat16")[0] == 0
    assert {array.dtype.name for array in load_file(half / "model.safetensors").values()} == {"bfloat16"}
    assert qwen3_jax.load(half)[0].param_dtype.name == "bfloat16"

    for argv, words in [
        (("convert", folder, back, "--to", "hf"), f"{back} exists"),
        (("convert", folder, back, "--to", "gguf"), "'gguf'"),
        (("convert", folder, back), "--to"),
        (("convert", tmp_path / "none", tmp_path / "x", "--to", "hf"), "none"),
        (("convert", tmp_path, tmp_path / "x", "--to", "hf"), "config.json does not exist"),
        (("convrt",), "Did you mean 'convert'?"),
    ]:
        code, out, err = qwen3(*argv)
        assert (code, out, len(err.splitlines())) == (2, "", 1), (argv, err)
        assert words in err
        assert not (tmp_path / "x").exists()
    assert qwen3("convert", half, back, "--to", "orbax", "--overwrite")[0] == 0
    assert (back / "params").is_dir()
    assert not (back / "model.safetensors").exists()


def test_tokenizer_train(qwen3, tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "a.txt").write_text("the cat sat on the mat, the cat sat there\n" * 20)
    (corpus / "b.jsonl").write_text('{"text": "another text about the cat"}\n' * 20)
    code, _, err = qwen3("tokenizer", "train", "--input", corpus / "*", "--vocab-size", 300, "--output", tmp_path / "t")
    assert code == 0, err
    tokenizer = qwen3_jax.Tokenizer.from_pretrained(tmp_path / "t")
    assert tokenizer.vocab_size == 300
    assert tokenizer.decode(tokenizer.encode("the cat 世界")) == "the cat 世界"
    assert tokenizer.supports_thinking
    train = ("tokenizer", "train", "--output", tmp_path / "t")
    for argv, words in [
        ((*train, "--input", corpus / "*", "--vocab-size", 300), "holds a tokenizer already"),
        ((*train, "--overwrite", "--input", corpus / "*.md", "--vocab-size", 300), "no file matches"),
        ((*train, "--overwrite", "--input", corpus / "a.txt", "--vocab-size", 100), "too small"),
        ((*train, "--overwrite", "--input", corpus / "a.txt", "--vocab-size", 9000), "fewer than"),
        (("tokenizer", "trian", "--input", "x", "--vocab-size", 300, "--output", "y"), "'trian'"),
    ]:
        code, out, err = qwen3(*argv)
        assert (code, out, len(err.splitlines())) == (2, "", 1), (argv, err)
        assert words in err
