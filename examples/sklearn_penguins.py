"""Penguin species with scikit-learn: one pipeline from the raw columns to the species."""

import penguins
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

import autolog

autolog.autolog()

data = penguins.load().dropna()
X_train, X_test, y_train, y_test = train_test_split(
    data.drop(columns="Species"), data["Species"], test_size=0.3, random_state=42
)

model = make_pipeline(
    make_column_transformer((OneHotEncoder(), ["Island"]), remainder=StandardScaler()),
    LogisticRegression(C=0.1, max_iter=200),
)
model.fit(X_train, y_train)

predictions = model.predict(X_test)
print(f"accuracy: {accuracy_score(y_test, predictions):.4f}")
