"""Penguin species with XGBoost: boosted trees, the test data's log loss watched at each round."""

import pandas as pd
import penguins
from sklearn.metrics import accuracy_score
from sklearn.model_selection import train_test_split
from xgboost import XGBClassifier

import autolog

autolog.autolog()

data = pd.get_dummies(penguins.load().dropna(), columns=["Island"])
X_train, X_test, y_train, y_test = train_test_split(
    data.drop(columns="Species"), data["Species"], test_size=0.3, random_state=42
)

model = XGBClassifier(n_estimators=20, max_depth=3, learning_rate=0.3, random_state=42)
model.fit(X_train, y_train, eval_set=[(X_test, y_test)], verbose=False)

predictions = model.predict(X_test)
print(f"accuracy: {accuracy_score(y_test, predictions):.4f}")
