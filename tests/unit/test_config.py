import pytest

from verl_ext.config import MethodConfig


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"coef": -0.1}, "method.coef"),
        ({"discount": 1.1}, "method.discount"),
        ({"discount_mode": "tinker"}, "method.discount_mode"),
        ({"control": "reversed"}, "method.control"),
    ],
)
def test_an_error_names_the_key(settings, key):
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        MethodConfig(**settings)
